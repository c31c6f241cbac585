# SPDX-License-Identifier: MIT
"""The agentic benchmark against a scripted peer: it measures what was sent, and it can lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peer
import pytest

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.errors import SetupError
from tokenspeed.bench import record
from tokenspeed.bench.agentic import Progress, main
from tokenspeed.bench.occupancy import occupancy
from tokenspeed.bench.scores import Scores, by_load, score

pytestmark = pytest.mark.slow  # whole runs against a server of the test: seconds each

SMALL = ("--scale", "0.004", "--turns-max", "4", "--concurrency", "1,2", "--think-scale", "0")


def bench(server: peer.Scripted, tmp_path: Path, *words: str) -> tuple[int, record.Result]:
    """Run the command against a server; the exit status and the result it wrote."""
    out = tmp_path / "result.json"
    status = main(["--url", server.url, *SMALL, "--out", str(out), *words])
    return status, record.read(out)


def all_scores(result: record.Result) -> list[Scores]:
    return [scores for repeats in by_load(result).values() for scores in repeats]


def failed_checks(result: record.Result) -> set[str]:
    return {check.name for scores in all_scores(result) for check in scores.checks if not check.passed}


@pytest.mark.parametrize("workload", ["h0", "h1a", "h1b"])
def test_honest_server_passes_every_check(workload: str, tmp_path: Path):
    with peer.scripted() as server:
        status, result = bench(server, tmp_path, "--workload", workload, "--repeats", "2")
    assert (status, failed_checks(result)) == (0, set())
    assert [(level.load, level.repeat) for level in result.levels] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert result.answers == ("real" if workload == "h0" else "forced")
    for level in result.levels:
        for row in level.rows:
            assert row.sent_tokens == row.prompt_tokens
            assert row.event_tokens == (1,) * row.output_tokens
            assert row.implied_least <= (row.cached_tokens or 0) <= row.implied_most


def test_open_loop_sends_every_request_of_the_trace(tmp_path: Path):
    with peer.scripted() as server:
        words = ("--workload", "h2", "--rates", "500", "--conversations", "20")
        status, result = bench(server, tmp_path, *words)
    assert (status, len(result.levels[0].rows)) == (0, 20)
    assert all(
        row.sent_us <= later.sent_us
        for row, later in zip(result.levels[0].rows, result.levels[0].rows[1:], strict=False)
    )


def test_same_seed_sends_identical_prompts_and_another_does_not(tmp_path: Path):
    sent: list[list[Any]] = []
    for seed in ("7", "7", "8"):
        with peer.scripted() as server:
            bench(server, tmp_path, "--seed", seed, "--concurrency", "1", "--workload", "h1a")
        sent.append(server.bodies)
    assert sent[0] == sent[1] != sent[2]


def test_no_prefix_is_shared_between_levels_repeats_and_warm_up(tmp_path: Path):
    with peer.scripted() as server:
        bench(server, tmp_path, "--turns-max", "1", "--repeats", "2")
    heads = [tuple(body["prompt"][:16]) for body in server.bodies]
    assert len(heads) == len(set(heads)) == 2 * (4 + 8 + 2)


def test_warm_up_is_sent_but_not_measured(tmp_path: Path):
    with peer.scripted() as server:
        _, result = bench(server, tmp_path)
    assert len(server.bodies) == sum(len(level.rows) for level in result.levels) + 2 * 2


@pytest.mark.parametrize(
    ("faults", "broken"),
    [
        (peer.Faults(cached_always=0.99), {"reuse"}),
        (peer.Faults(cached_always=0.0), {"reuse"}),
        (peer.Faults(forgets=True), {"reuse"}),
        (peer.Faults(cached_reported=False), {"reuse"}),
        (peer.Faults(short_answers=True), {"output tokens"}),
    ],
    ids=["claims hits", "denies hits", "forgets", "says nothing", "answers short"],
)
def test_server_that_cheats_is_invalid(faults: peer.Faults, broken: set[str], tmp_path: Path):
    with peer.scripted(faults) as server:
        status, result = bench(server, tmp_path)
    assert (status, failed_checks(result)) == (1, broken)
    assert not any(verdict.passed for scores in all_scores(result) for verdict in scores.verdicts)


def test_conversations_reused_across_levels_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The leak that flatters: the second level is answered from the cache that the first one filled."""
    from tokenspeed.bench import workloads

    honest = workloads.build

    class Leaky:
        def __init__(self, *words: Any) -> None:
            self._inner = honest(*words)

        def conversations(self, load: float, count: int | None, *key: int) -> Any:
            return self._inner.conversations(load, count, 0, 0)

    monkeypatch.setattr(workloads, "build", Leaky)
    with peer.scripted() as server:
        status, result = bench(server, tmp_path, "--concurrency", "2")
        again_status, again = bench(server, tmp_path, "--concurrency", "2")
    assert (status, again_status) == (1, 1)
    assert failed_checks(result) == failed_checks(again) == {"reuse"}
    said = [check.said for scores in all_scores(again) for check in scores.checks if check.name == "reuse"]
    assert "conversations were not fresh" in said[0]


def test_refusals_are_failures_and_no_floor_is_passed(tmp_path: Path):
    with peer.scripted(peer.Faults(refuse_after=6)) as server:
        status, result = bench(server, tmp_path, "--concurrency", "1", "--floors", "0.001")
    scores = score(result, result.levels[0])
    assert status == 1
    # Four conversations: the first is whole, each of the others ends at its first refusal.
    assert (scores.calls, scores.failed) == (4 + 3, 3)
    assert not scores.verdicts[0].passed
    assert [row.error for row in result.levels[0].rows if row.error] == ["HTTP 429: the queue is full"] * 3


def test_stream_that_breaks_off_ends_the_warm_up_with_a_reason(tmp_path: Path):
    with (
        peer.scripted(peer.Faults(cut_after=1)) as server,
        pytest.raises(SetupError, match="closed the conn"),
    ):
        bench(server, tmp_path)


def test_server_without_replay_gets_recorded_answers_and_is_held_to_what_that_implies(tmp_path: Path):
    with peer.scripted(peer.Faults(forced=False)) as server:
        status, result = bench(server, tmp_path, "--workload", "h1a")
    assert (status, result.answers) == (0, "recorded")
    assert "forced_token_ids" in server.bodies[0]
    assert not any("forced_token_ids" in body for body in server.bodies[1:])


def test_replay_that_strays_from_the_record_is_invalid(tmp_path: Path):
    with peer.scripted(peer.Faults(wrong_forced=True)) as server:
        status, result = bench(server, tmp_path, "--workload", "h1a")
    assert (status, failed_checks(result)) == (1, {"answers"})


def test_server_without_ids_is_measured_with_filler_answers(tmp_path: Path):
    with peer.scripted(peer.Faults(ids=False)) as server:
        status, result = bench(server, tmp_path)
    assert (status, result.answers) == (0, "filler")
    assert all(scores.tokens_per_step is None for scores in all_scores(result))


def test_chat_sends_messages_and_appends_the_real_answer(tmp_path: Path):
    with peer.scripted() as server:
        _, result = bench(server, tmp_path, "--api", "chat", "--concurrency", "1")
    first, second = server.bodies[2:4]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][1]["content"].startswith("w")
    assert result.answers == "real"
    assert all(row.sent_tokens is None for row in result.levels[0].rows)


def test_each_conversation_is_a_session_of_its_own(tmp_path: Path):
    with peer.scripted() as server:
        bench(server, tmp_path, "--concurrency", "1", "--turns-max", "2")
    sessions = server.sessions
    assert None not in sessions
    assert sessions[::2] == sessions[1::2]
    assert len(set(sessions)) == 4 + 1  # and the warm-up's


def test_plain_sends_only_openai_fields(tmp_path: Path):
    with peer.scripted() as server:
        bench(server, tmp_path, "--plain", "--workload", "h1a", "--concurrency", "1")
    assert set(server.sessions) == {None}
    fields = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert all(set(body) == fields for body in server.bodies)


def test_nobody_there_is_one_clear_line():
    with pytest.raises(SetupError, match=r"--url: GET /v1/models: cannot connect"):
        main(["--url", "http://127.0.0.1:9"])


def test_requests_beyond_the_context_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with peer.scripted() as server:
        _, result = bench(server, tmp_path, "--context", "205", "--concurrency", "1")
    assert {level.left_out for level in result.levels} == {4 * 3}
    assert "12 requests do not fit the context and were left out" in capsys.readouterr().out


def test_workload_that_fits_no_context_says_what_would_work(tmp_path: Path):
    wanted = (
        "16384 tokens: the shortest needs 50500 for its first turn, 51800 for all; give a smaller --scale"
    )
    with peer.scripted() as server, pytest.raises(SetupError, match=wanted):
        bench(server, tmp_path, "--scale", "1", "--turns-max", "2", "--context", "16384")
    assert server.bodies == []


def test_occupancy_is_what_the_server_says_while_a_level_runs(tmp_path: Path):
    with peer.scripted() as server:
        _, result = bench(server, tmp_path)
    assert {share for level in result.levels for _, share in level.occupancy} == {0.25}


def test_occupancy_leaves_out_prefixes_that_nobody_uses():
    page = "tokenspeed_blocks_total 100.0\ntokenspeed_blocks_free 20.0\ntokenspeed_blocks_cached 30.0\n"
    assert occupancy(page) == pytest.approx(0.5)
    assert occupancy("process_cpu_seconds_total 3\n") is None


def test_progress_shows_live_speed_and_tokens_per_minute():
    clock = FakeClock()
    progress = Progress(clock, "h0 4 (1/3)", turns=4)
    clock.advance_us(20_000_000)
    for _ in range(30):
        progress.piece(b"data: {}\n\ndata: {}\n\n")
    gaps_us = (20_000,) * 9  # 50 tokens a second
    progress.call(record.Row("a", 0, 10, 0, 1, gaps_us=gaps_us, output_tokens=10))
    progress.call(record.Row("a", 1, 10, 0, 1, error="HTTP 429: full"))
    # 60 events in the last 10 s are 360 a minute.
    line = "h0 4 (1/3) [##########..........] 2/4 turns, 1 failed  50.0 tps/user  360 TPM"
    assert progress.line() == line
    clock.advance_us(11_000_000)
    assert progress.line().endswith(" 0 TPM")


@pytest.mark.parametrize(
    "words", [("--seed", "-1"), ("--concurrency", "0"), ("--rates", "0"), ("--floors", "x")]
)
def test_senseless_option_is_refused_by_name(words: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(list(words))
    assert f"argument {words[0]}: {words[1]!r} is not a" in capsys.readouterr().err


def test_tokenizer_of_another_model_is_refused_before_anything_is_measured(tmp_path: Path):
    tokenizer = Path(__file__).parents[3] / "tokenspeed" / "bundled" / "tokenspeed-demo" / "tokenizer.json"
    with (
        peer.scripted() as server,
        pytest.raises(SetupError, match=r"makes 81\d\d ids, the model knows 1000"),
    ):
        bench(server, tmp_path, "--tokenizer", str(tokenizer))
    assert server.bodies == []
