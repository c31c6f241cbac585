# SPDX-License-Identifier: MIT
"""Workloads have the shapes that were published, and drawn sessions their distributions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import replay, workloads
from tokenspeed.bench.conversation import Conversation, Vocabulary, fitted, hashed_pieces, words
from tokenspeed.bench.validity import Ledger

TRACES = Path(__file__).parents[4] / "shared" / "data" / "traces"
VOCABULARY = Vocabulary(8192)
NO_DATA = pytest.mark.skipif(not TRACES.is_dir(), reason="the recorded traces are not here")


def options(
    data: Path | None = None, scale: float = 1 / 8, turns_max: int | None = None
) -> workloads.Options:
    return workloads.Options(VOCABULARY, hashed_pieces(VOCABULARY), data, scale, 1.0, turns_max, seed=0)


def implied_share(conversations: list[Conversation], block_tokens: int = 16) -> float:
    """Reuse of conversations played one after the other, with answers that are known."""
    ledger, reused, total = Ledger(block_tokens), 0, 0
    for conversation in conversations:
        history = np.empty(0, np.int32)
        for turn in conversation.turns:
            prompt = np.concatenate([history, turn.ids])
            reused += ledger.implied(prompt)[0]
            total += len(prompt)
            answer = np.arange(turn.answer_tokens, dtype=np.int32) if turn.answer is None else turn.answer
            history = np.concatenate([prompt, answer])
            ledger.finish(history)
    return reused / total


def recorded(directory: Path, *, texts: bool = True) -> Path:
    """Traces of two sessions without a hidden prompt, which begin alike, and one with."""
    heads = {"one": 0, "two": 0, "hidden": 1024}
    files: dict[str, list[dict[str, Any]]] = {"agent_replay": [], "agent_sessions": []}
    for name, hidden in heads.items():
        call = {"function": {"name": "look", "arguments": '{"at": "' + name + '"}'}}
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "You are an agent that writes programs. " * 20},
            {"role": "user", "content": f"Mend {name}."},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "content": f"def {name}(): pass"},
            {"role": "assistant", "content": "Done."},
        ]
        turns = [[None, "start", hidden + 400, 400, 30], [0.5, "tool", hidden + 460, 30, 8]]
        chain = [*range(hidden // 512), 900]
        files["agent_replay"].append(
            {"id": name, "hidden_prefix": hidden, "chain512": chain, "turns": turns}
        )  # fmt: skip
        files["agent_sessions"].append({"id": name, "messages": messages, "turns": [{"i": 2}, {"i": 4}]})
    (directory / "dev").mkdir()
    for file, entries in files.items():
        if texts or file == "agent_replay":
            lines = b"\n".join(json.dumps(entry).encode() for entry in entries)
            (directory / "dev" / f"{file}.jsonl.gz").write_bytes(gzip.compress(lines))
    return directory


def test_h1_says_the_recorded_texts_in_the_recorded_lengths(tmp_path: Path):
    workload = workloads.build("h1a", options(recorded(tmp_path), scale=1.0))
    made = {each.id: each.turns for each in workload.conversations(2, 3, 0, 0)}
    encode = hashed_pieces(VOCABULARY)
    for name, turns in made.items():
        hidden = 1024 * (name == "hidden")
        assert [(len(turn.ids), turn.answer_tokens) for turn in turns] == [(hidden + 400, 30), (30, 8)]
        call = f'{{"name": "look", "arguments": {{"at": "{name}"}}}}'
        called = f"<think>\nhm\n</think>\n\n<tool_call>\n{call}\n</tool_call>"
        for turn, said in zip(turns, (f"{called}<|im_end|>", "Done.<|im_end|>"), strict=True):
            assert turn.answer is not None
            assert turn.answer.tolist() == fitted(encode(said), turn.answer_tokens).tolist()
        new = f"\n<|im_start|>tool\ndef {name}(): pass<|im_end|>\n<|im_start|>assistant\n"
        assert turns[1].ids.tolist() == fitted(encode(new), 30).tolist()
        assert turns[0].texts is not None
        assert turns[0].texts[1:] == ("You are an agent that writes programs. " * 20, f"Mend {name}.")
        assert turns[1].texts == (f"def {name}(): pass",)
    # The system prompt that two sessions have in common is common here too, under one nonce.
    assert made["one"][0].ids[:200].tolist() == made["two"][0].ids[:200].tolist()
    assert made["one"][0].ids[:8].tolist() != made["hidden"][0].ids[:8].tolist()


def test_h1_without_texts_says_drawn_ids_in_the_same_lengths(tmp_path: Path):
    workload = workloads.build("h1a", options(recorded(tmp_path, texts=False), scale=1.0))
    for conversation in workload.conversations(2, 3, 0, 0):
        hidden = 1024 * (conversation.id == "hidden")
        assert [(len(t.ids), t.answer_tokens, t.texts) for t in conversation.turns] == [
            (hidden + 400, 30, None),
            (30, 8, None),
        ]


@NO_DATA
def test_every_recorded_call_has_its_words():
    sessions = replay.read_sessions(TRACES)
    assert len(sessions) == 330
    for session in sessions:
        assert session.words is not None
        assert len(session.words) == len(session.calls)
        assert all(each.answer and each.prompt.endswith("<|im_start|>assistant\n") for each in session.words)


@pytest.mark.parametrize("data", [None, pytest.param(TRACES, marks=NO_DATA)])
def test_h0_has_the_published_lengths_and_reuse(data: Path | None):
    made = workloads.build("h0", options(data, scale=1.0)).conversations(4, None, 0, 0)
    assert len(made) == 8
    for conversation in made:
        assert 10 <= len(conversation.turns) <= 15
        assert [len(turn.ids) for turn in conversation.turns] == [
            50_000,
            *[800] * (len(conversation.turns) - 1),
        ]
        assert {turn.answer_tokens for turn in conversation.turns} == {500}
    assert implied_share(made) == pytest.approx(0.918, abs=0.01)


def test_h0_scales_all_lengths_alike():
    turns = workloads.build("h0", options()).conversations(1, 1, 0, 0)[0].turns
    assert [len(turn.ids) for turn in turns[:3]] == [6250, 100, 100]
    assert turns[0].answer_tokens == 62


@pytest.mark.parametrize("name", workloads.NAMES)
@pytest.mark.parametrize("data", [None, pytest.param(TRACES, marks=NO_DATA)])
def test_conversations_are_a_function_of_the_key_and_share_nothing_across_levels(
    name: str, data: Path | None
):
    workload = workloads.build(name, options(data, turns_max=3))
    first, again, other = (workload.conversations(2, 4, *key) for key in ((0, 0), (0, 0), (1, 0)))
    for one, two in zip(first, again, strict=True):
        assert one.arrival_us == two.arrival_us
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(one.turns, two.turns, strict=True))
    ledger = Ledger(16)
    for conversation in first:
        ledger.finish(np.concatenate([turn.ids for turn in conversation.turns]))
    assert {ledger.implied(conversation.turns[0].ids)[1] for conversation in other} == {0}


def test_vocabulary_folds_any_number_to_an_ordinary_token():
    for vocabulary in (Vocabulary(64), VOCABULARY, Vocabulary(151_936)):
        folded = vocabulary.fold(np.array([0, 1, 10**12, 2**62]))
        assert folded.min() >= vocabulary.low > 0
        assert folded.max() < vocabulary.high < vocabulary.size
    with pytest.raises(SetupError, match="at least 64"):
        Vocabulary(63)


def test_pieces_are_equal_where_text_is():
    encode = hashed_pieces(VOCABULARY)
    assert np.array_equal(encode("def f(x):\n    return x"), encode("def f(x):\n    return x"))
    assert len(fitted(encode("one two"), 7)) == 7
    assert words(np.array([1, 2, 1], np.int32)).split()[0] == words(np.array([1], np.int32))
    with pytest.raises(SetupError, match="no text"):
        fitted(encode(""), 3)


def quantiles(values: list[float]) -> list[float]:
    return [float(np.quantile(values, share)) for share in replay.SHARES]


def near(values: list[float], published: tuple[float, ...], share: float) -> bool:
    return quantiles(values) == pytest.approx(list(published), rel=share)


def test_drawn_sessions_follow_the_published_statistics():
    """The figures are those of the README of the traces."""
    sessions = replay.draw_sessions(0, 1000)
    calls = [call for session in sessions for call in session.calls]
    pairs = [pair for each in sessions for pair in zip(each.calls, each.calls[1:], strict=False)]
    new = [after.input_tokens - before.input_tokens - before.output_tokens for before, after in pairs]
    final = [
        session.calls[-1].input_tokens + session.calls[-1].output_tokens - session.hidden_tokens
        for session in sessions
    ]
    assert near([len(session.calls) for session in sessions], (11, 25, 42, 61, 97, 122, 206), 0.15)
    assert near(new, (20, 51, 187, 565, 1554, 2942, 8352), 0.1)
    assert near([call.output_tokens for call in calls], (50, 83, 117, 262, 594, 935, 2045), 0.1)
    waits = [after for _, after in pairs]
    tool = [call.gap_s for call in waits if not call.human]
    assert quantiles(tool)[1:] == pytest.approx([0.02, 0.21, 2.1, 24, 38, 142], rel=0.2)
    human = [call.gap_s for call in waits if call.human]
    assert quantiles(human)[:6] == pytest.approx([10, 54, 142, 340, 1063, 2709], rel=0.2)
    # Sums and products of these; a drawn session's calls are independent, real ones are not quite.
    assert quantiles(final)[:6] == pytest.approx([11e3, 28e3, 45e3, 75e3, 102e3, 118e3], rel=0.2)
    prompts = [call.input_tokens for call in calls]
    assert quantiles(prompts) == pytest.approx([11e3, 32e3, 60e3, 97e3, 128e3, 145e3, 228e3], rel=0.25)
    reused = sum(before.input_tokens + before.output_tokens for before, _ in pairs)
    assert reused / sum(prompts) == pytest.approx(0.983, abs=0.005)


@NO_DATA
def test_drawn_sessions_are_as_the_recorded_ones():
    recorded, drawn = replay.read_sessions(TRACES), replay.draw_sessions(0, 1000)
    for of in (lambda call: call.output_tokens, lambda call: call.input_tokens):
        real, made = (
            quantiles([of(call) for each in made for call in each.calls]) for made in (recorded, drawn)
        )
        assert made == pytest.approx(real, rel=0.25)


@pytest.mark.parametrize("data", [None, pytest.param(TRACES, marks=NO_DATA)])
def test_h1_answers_are_the_stream_and_waits_are_capped(data: Path | None):
    still = workloads.build("h1a", options(data)).conversations(2, 6, 0, 0)
    thinking = workloads.build("h1b", options(data)).conversations(6, 6, 0, 0)
    assert implied_share(still) > 0.95
    assert {turn.think_us for conversation in still for turn in conversation.turns} == {0}
    waits = [turn.think_us for conversation in thinking for turn in conversation.turns]
    assert 0 < max(waits) <= 120_000_000
    for conversation in (*still, *thinking):
        for turn in conversation.turns:
            assert turn.answer is not None
            assert len(turn.answer) == turn.answer_tokens > 0


def test_sessions_share_the_head_of_their_chains_and_no_more():
    one, two = (replay.Session(name, 0, chain, (replay.Call(0, False, 1500, 100),)) for name, chain in
                (("a", (0, 1, 2)), ("b", (0, 1, 3))))  # fmt: skip
    stream = workloads._Stream(options(), (0, 0))
    a, b = (stream.ids(session.chain, 1600, session.id) for session in (one, two))
    assert len(a) == len(b) == 200
    assert np.array_equal(a[:128], b[:128])
    assert (a[128:192] != b[128:192]).mean() > 0.9


@pytest.mark.parametrize("data", [None, pytest.param(TRACES, marks=NO_DATA)])
def test_h2_arrives_at_the_mean_rate_and_reuses(data: Path | None):
    made = workloads.build("h2", options(data)).conversations(4.0, 200, 0, 0)
    assert made[0].arrival_us == 0
    assert made[-1].arrival_us == pytest.approx(200 / 4 * 1e6)
    assert any(conversation.later for conversation in made)
    assert not made[0].later
    assert implied_share(made) > 0.05


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_scale_out_of_range_is_refused(scale: float):
    with pytest.raises(SetupError, match="--scale"):
        workloads.build("h0", options(scale=scale))


def test_missing_data_is_one_clear_line(tmp_path: Path):
    with pytest.raises(SetupError, match="--data: "):
        workloads.build("h1a", options(tmp_path))
