# SPDX-License-Identifier: MIT
"""Recorded agents on the real control plane: what is played, what is judged, what no cache beats."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tokenspeed.audit.floors import audit
from tokenspeed.audit.journal import read
from tokenspeed.base.errors import SetupError
from tokenspeed.control import SchedulerOptions
from tokenspeed.sim.agents import Agents, Record, Setting
from tokenspeed.sim.bounds import bounds
from tokenspeed.sim.device import DEVICES, NOISES, Noise, Step
from tokenspeed.sim.main import main
from tokenspeed.sim.measures import jain, measure, violations
from tokenspeed.sim.replay import read_journal, replay
from tokenspeed.sim.sessions import Session, read_sessions, working_set_tokens
from tokenspeed.sim.study import SWITCHES, Case, options_of, play

DEVICE = DEVICES["moonlight", "h200"]
TRACES = Path(__file__).parents[4] / "shared" / "data" / "traces"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sessions of six calls that share their first 1,024 tokens."""
    path = tmp_path_factory.mktemp("trace") / "agent_replay.jsonl"
    random = np.random.default_rng(0)
    lines: list[str] = []
    name = 2
    for index in range(8):
        turns: list[list[object]] = []
        tokens = int(random.integers(1_200, 3_000))
        for number in range(6):
            output = int(random.integers(1, 80))
            kind = "start" if number == 0 else "human" if number == 3 else "tool"
            turns.append([float(random.integers(0, 300)) / 100, kind, tokens, 0, output])
            tokens += output + int(random.integers(1, 600))
        blocks = tokens // 512
        chain = [0, 1, *range(name, name + blocks - 2)]
        name += blocks - 2
        lines.append(json.dumps({"id": f"s{index}", "chain512": chain, "turns": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def sessions(trace: Path) -> list[Session]:
    return read_sessions(trace)


def options(
    sessions: list[Session], *, lanes: int = 4, pool: float = 1.0, overlap: bool = True
) -> SchedulerOptions:
    return options_of(Case(lanes, 40, pool, policies="off", overlap=overlap), sessions)


def played(
    sessions: list[Session], options: SchedulerOptions, *, seconds: int = 60, noise: Noise | None = None
) -> Record:
    setting = Setting(
        seed=1,
        lanes=4,
        duration_us=seconds * 1_000_000,
        warm_up_us=5_000_000,
        noise=noise or NOISES["exact"],
        tokens_max=400,
    )
    return Agents(sessions, options, DEVICE, setting).play()


def test_a_session_is_read_as_it_was_recorded(sessions: list[Session]) -> None:
    assert len(sessions) == 8
    for session in sessions:
        end = session.calls[-1].input_tokens + session.calls[-1].output_tokens
        assert len(session.chain) == -(-end // 512)
        assert session.calls[0].gap_us == 0
        assert [call.human for call in session.calls] == [False] * 3 + [True] + [False] * 2
    assert working_set_tokens(sessions, 2) == pytest.approx(2 * working_set_tokens(sessions, 1), abs=1)


def test_a_session_that_takes_words_back_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"id": "x", "chain512": [0], "turns": [[0, "start", 600, 600, 9], [1, "tool", 400, 0, 9]]}\n'
    )
    with pytest.raises(SetupError, match="call 1 does not append"):
        read_sessions(path)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_turn_gets_its_tokens_in_order(sessions: list[Session], overlap: bool) -> None:
    record = played(sessions, options(sessions, overlap=overlap))
    ended = [turn for turn in record.turns if turn.end_us is not None]
    assert len(ended) > 20
    counts = np.bincount(record.token_ids, minlength=len(record.turns))
    assert all(counts[turn.request_id] == turn.output_tokens for turn in ended)
    assert np.all(np.diff(record.token_us) >= 0)
    for turn in ended:
        assert turn.bound_us is not None
        assert turn.first_token_us is not None
        assert turn.end_us is not None
        assert turn.submit_us <= turn.bound_us < turn.first_token_us <= turn.end_us


def test_a_lane_waits_for_its_answer_and_the_gap(sessions: list[Session]) -> None:
    record = played(sessions, options(sessions))
    for lane in range(4):
        turns = [turn for turn in record.turns if turn.lane == lane]
        for one, next_ in pairwise(turns):
            assert one.end_us is not None
            same = one.session == next_.session
            gap_us = sessions[next_.session_index].calls[next_.number].gap_us if same else 0
            assert next_.submit_us >= one.end_us + gap_us


def test_equal_seeds_give_equal_runs_and_noise_its_own(sessions: list[Session]) -> None:
    one, two = (played(sessions, options(sessions)) for _ in range(2))
    assert one.turns == two.turns
    assert np.array_equal(one.token_us, two.token_us)
    noisy = played(sessions, options(sessions), noise=NOISES["noisy"])
    assert not np.array_equal(one.token_us[:1000], noisy.token_us[:1000])


def test_an_ample_pool_finds_what_an_endless_cache_would(sessions: list[Session]) -> None:
    record = played(sessions, options(sessions, pool=40.0), seconds=120)
    found = bounds(record, sessions, 10**9)
    assert found.endless_tokens == found.belady_tokens
    measured = measure(record, DEVICE, found.endless_tokens, 40)
    # The scheduler reuses whole blocks of 64, the bound single tokens.
    assert 0 <= measured.hit_bound_share - measured.hit_share < 32 * 1.5 / 1_500


def test_belady_lies_between_an_lru_and_an_endless_cache(sessions: list[Session]) -> None:
    scarce = options(sessions, pool=0.6)
    record = played(sessions, scarce, seconds=200)
    found = bounds(record, sessions, scarce.blocks_total * 64)
    late = [turn for turn in record.turns if turn.submit_us >= 5_000_000 and turn.bound_us is not None]
    hit = sum(turn.cached_tokens for turn in late)
    assert record.evictions > 0
    assert hit < found.belady_tokens < found.endless_tokens < found.prompt_tokens


def test_windows_are_judged_by_tokens_or_by_time() -> None:
    at_pace = np.arange(0, 200) * 25_000  # 40 tokens a second
    assert violations(at_pace, 40) == (4, 0)
    assert violations(at_pace, 41)[1] == 3
    # one stall of 1 s: a window of 64 tokens cannot hold 40 a second any more
    stalled = at_pace + np.where(np.arange(200) >= 100, 1_000_000, 0)
    assert violations(stalled, 40)[1] == 1
    # nothing for ten seconds: five windows of 2 s
    gone = np.array([0, 10_000_000, 10_010_000])
    assert violations(gone, 20)[1] == 5
    # an answer that ends before a window would be over is promised nothing
    assert violations(np.array([0, 900_000]), 70) == (1, 0)
    assert violations(np.array([0, 950_000]), 70) == (1, 1)
    assert violations(np.array([0]), 70) == (0, 0)


def test_jain_is_one_for_equals_and_one_nth_for_a_monopoly() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)


def test_a_step_costs_what_the_prices_say() -> None:
    base, row, context, token, pair = DEVICE.prices
    step = Step(2, 1_000, 100, 5_000)
    assert DEVICE.step_us(step) == round(base + 2 * row + 1_000 * context + 100 * token + 5_000 * pair)
    experts = DEVICES["moonlight-experts", "h200"]
    assert experts.step_us(Step(16, 819_200, 0, 0)) == pytest.approx(12_858, rel=0.05)
    assert DEVICE.step_us(Step(16, 819_200, 0, 0)) == pytest.approx(12_858, rel=0.12)
    assert replace(experts, expert_us=0.0).step_us(step) < experts.step_us(step)


def test_policies_are_switches() -> None:
    assert Case(1, 1, 1.0, policies="off").switches == frozenset()
    assert Case(1, 1, 1.0, policies="tiers").switches == frozenset(SWITCHES)
    assert Case(1, 1, 1.0, policies="floor+tiers").switches == {"floor", "tiers"}
    with pytest.raises(SetupError, match="no luck"):
        _ = Case(1, 1, 1.0, policies="floor+luck").switches


def test_the_command_writes_what_it_prints(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sim.json"
    words = "--sessions 3 --floor 20 40 --pool 9 --policies off --minutes 0.5 --warm-up 0.1 --jobs 1"
    assert main(["--trace", str(trace), *words.split(), "--json", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    record = json.loads(out.read_text())
    assert [row["case"]["floor_tps"] for row in record["rows"]] == [20, 40]
    assert record["device_model"]["provenance"]
    assert record["commands"] == [f"tokenspeed sim --trace {trace.name} {words} --json {out}"]


@pytest.mark.skipif(not TRACES.is_dir(), reason="the recorded sessions are not here")
def test_recorded_sessions_play() -> None:
    recorded = read_sessions(TRACES)
    assert len(recorded) == 330
    record, _ = play(Case(24, 40, 1.0, policies="off", minutes=1.0, warm_up_minutes=0.5), recorded)
    assert len(record.turns) > 100


@pytest.mark.parametrize("policies", ["off", "floor", "on", "tiers"])
def test_the_auditor_and_a_replay_agree_with_the_run(trace: Path, tmp_path: Path, policies: str) -> None:
    """Two judges that share no code count the same windows, and the journal gives the same decisions again."""
    sessions = read_sessions(trace)
    case = Case(
        3,
        40,
        200.0,  # a session is expected to become as long as real ones
        policies,
        host=1.0,
        noise="noisy",
        model="moonlight-experts",
        minutes=1.0,
        warm_up_minutes=0.0,
    )
    path = tmp_path / "events"
    record, _ = play(case, sessions, path)
    order = np.argsort(record.token_ids, kind="stable")
    ids, places = np.unique(record.token_ids[order], return_index=True)
    times = dict(zip(ids.tolist(), np.split(record.token_us[order], places[1:]), strict=True))
    for floor in (40, 250, 400):
        mine = [violations(times[request_id], floor) for request_id in times]
        verdict = audit(read(path.read_bytes()), floor_mtps=floor * 1000)
        assert verdict.windows == sum(windows for windows, _ in mine) > 10
        assert len(verdict.violations) == sum(violating for _, violating in mine)
    assert verdict.violations  # nobody gets 400 tokens a second
    assert replay(read_journal(path)).difference is None
