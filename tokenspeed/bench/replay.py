# SPDX-License-Identifier: MIT
"""Sessions as numbers and, where they were recorded, words: gaps, lengths, chains of blocks, texts.

A chain id names all tokens of a session up to the end of its block: two sessions share a prefix exactly as far
as their chains are equal. The drawn sessions follow the quantiles published with the recorded ones, so
that the benchmark runs where the data is not; what was not published (hidden prompts, first prompts, the share of
human gaps) was measured on them.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenspeed.base.errors import SetupError

BLOCK_TOKENS: Final = 512
"""Tokens that one chain id covers at full scale."""
SHARED_BLOCKS: Final = 32
"""Blocks of system prompt that all sessions with a hidden prefix have in common."""

SHARES: Final = (0.05, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
CALLS: Final = (11, 25, 42, 61, 97, 122, 206)
NEW_TOKENS: Final = (20, 51, 187, 565, 1554, 2942, 8352)
OUTPUT_TOKENS: Final = (50, 83, 117, 262, 594, 935, 2045)
TOOL_GAP_S: Final = (0.001, 0.02, 0.21, 2.1, 24.0, 38.0, 142.0)
HUMAN_GAP_S: Final = (10.0, 54.0, 142.0, 340.0, 1063.0, 2709.0, 38687.0)
HIDDEN_SHARES: Final = (0.36, 0.56)
"""Sessions whose system prompt the transcripts leave out, among those of up to the median calls and of more."""
HIDDEN_TOKENS: Final = (23_552, 26_496, 37_888, 39_936, 50_483, 55_808, 100_521)
HUMAN_SHARE: Final = 689 / (689 + 15_708)
"""Of the gaps, those in which a person thought."""
FIRST_TOKENS: Final = (6_405, 6_600, 6_714, 7_000, 7_243, 7_300, 7_400)
"""First prompts of sessions without a hidden prefix."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a session."""

    gap_s: float
    human: bool
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Words:
    """The recorded text of one call, as ChatML puts it to a model."""

    messages: tuple[str, ...]
    """What is new since the answer before, without frames."""
    prompt: str
    """The same in its frames, up to where the answer begins."""
    answer: str


@dataclass(frozen=True, slots=True)
class Session:
    """One recorded or drawn session. `chain[j]` names tokens 0..512 (j + 1) of its stream."""

    id: str
    hidden_tokens: int
    chain: tuple[int, ...]
    calls: tuple[Call, ...]
    words: tuple[Words, ...] | None = None
    """A text for each call; None where only numbers are known."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of an open-loop trace; `blocks` name its 512-token blocks, the partial last one too."""

    at_ms: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


def read_lines(path: Path) -> Iterator[Any]:
    """The documents of a gzipped file of JSON lines."""
    try:
        with gzip.open(path, "rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line)
    except (OSError, msgspec.DecodeError) as error:
        raise SetupError(f"--data: {path}: {error}") from error


def read_sessions(directory: Path) -> list[Session]:
    """The recorded sessions of `agent_replay.jsonl.gz`; their texts, if `agent_sessions.jsonl.gz` is beside it."""
    texts = directory / "dev" / "agent_sessions.jsonl.gz"
    words = {entry["id"]: _words(entry) for entry in read_lines(texts)} if texts.is_file() else {}
    return [
        Session(
            id=entry["id"],
            hidden_tokens=entry["hidden_prefix"],
            chain=tuple(entry["chain512"]),
            calls=tuple(
                Call(gap_s or 0.0, kind == "human", input_tokens, max(output_tokens, 1))
                for gap_s, kind, input_tokens, _, output_tokens in entry["turns"]
            ),
            words=words.get(entry["id"]),
        )
        for entry in read_lines(directory / "dev" / "agent_replay.jsonl.gz")
    ]


def _words(entry: dict[str, Any]) -> tuple[Words, ...]:
    """Cut the messages of a session at its answers."""
    messages: list[dict[str, Any]] = entry["messages"]
    found: list[Words] = []
    done = 0
    for turn in entry["turns"]:
        place: int = turn["i"]
        new = [(message["role"], _said(message)) for message in messages[done:place]]
        framed = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in new)
        begin = "\n" if done else ""  # closes the line of the answer before
        found.append(
            Words(
                messages=tuple(said for _, said in new if said),
                prompt=f"{begin}{framed}<|im_start|>assistant\n",
                answer=_said(messages[place]) + "<|im_end|>",
            )
        )
        done = place + 1
    return tuple(found)


def _said(message: dict[str, Any]) -> str:
    """What a message says, its reasoning and its calls included."""
    parts = [message.get("content") or ""]
    if reasoning := message.get("reasoning_content"):
        parts.insert(0, f"<think>\n{reasoning}\n</think>\n")
    for call in message.get("tool_calls") or ():
        function: dict[str, str] = call["function"]
        # The arguments are JSON already.
        named = f'{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}'
        parts.append(f"<tool_call>\n{named}\n</tool_call>")
    return "\n".join(part for part in parts if part)


def read_arrivals(directory: Path) -> list[Arrival]:
    """The requests of Mooncake's conversation trace."""
    return [
        Arrival(entry["timestamp"], entry["input_length"], entry["output_length"], tuple(entry["hash_ids"]))
        for entry in read_lines(directory / "traces" / "mooncake_conversation_trace.jsonl.gz")
    ]


def draw(
    random: np.random.Generator, quantiles: tuple[float, ...], count: int, *, ratio_max: float = 8.0
) -> NDArray[np.float64]:
    """Draw from a distribution given by its quantiles at `SHARES`, log-linear between and beyond them.

    The upper tail ends at `ratio_max` times the last quantile.
    """
    logs = np.log(quantiles)
    low = logs[0] - (logs[1] - logs[0]) * SHARES[0] / (SHARES[1] - SHARES[0])
    slope = (logs[-1] - logs[-2]) / (SHARES[-1] - SHARES[-2])
    high = min(logs[-1] + slope * (1 - SHARES[-1]), logs[-1] + math.log(ratio_max))
    return np.exp(np.interp(random.random(count), (0.0, *SHARES, 1.0), (low, *logs, high)))


def draw_sessions(seed: int, count: int) -> list[Session]:
    """Draw sessions whose calls, lengths and gaps follow the published quantiles."""
    random = np.random.default_rng((seed, 0x5E55))
    sessions: list[Session] = []
    names = SHARED_BLOCKS
    for index in range(count):
        calls = max(1, round(float(draw(random, CALLS, 1)[0])))
        hidden_share = HIDDEN_SHARES[calls > CALLS[2]]
        hidden = int(draw(random, HIDDEN_TOKENS, 1)[0]) if random.random() < hidden_share else 0
        first = int(draw(random, NEW_TOKENS if hidden else FIRST_TOKENS, 1)[0])
        new = np.concatenate([[hidden + first], np.rint(draw(random, NEW_TOKENS, calls - 1))])
        output = np.maximum(1, np.rint(draw(random, OUTPUT_TOKENS, calls)))
        human = random.random(calls) < HUMAN_SHARE
        gaps_s = np.where(human, draw(random, HUMAN_GAP_S, calls), draw(random, TOOL_GAP_S, calls))
        gaps_s[0] = 0.0
        inputs = np.cumsum(np.maximum(1, new)) + np.concatenate([[0], np.cumsum(output)[:-1]])
        blocks = int(inputs[-1] + output[-1]) // BLOCK_TOKENS
        shared = min(SHARED_BLOCKS, blocks, hidden // BLOCK_TOKENS)
        chain = (*range(shared), *range(names, names + blocks - shared))
        names += blocks - shared
        steps = zip(gaps_s.tolist(), human.tolist(), inputs.tolist(), output.tolist(), strict=True)
        calls_ = tuple(Call(gap_s, is_human, int(inp), int(out)) for gap_s, is_human, inp, out in steps)
        sessions.append(Session(f"drawn-{index}", hidden, chain, calls_))
    return sessions


def draw_arrivals(seed: int, count: int) -> list[Arrival]:
    """Drawn sessions as a trace of requests: 8 at once, service in 0.5 s + output / 100, gaps capped."""
    arrivals: list[Arrival] = []
    sessions = draw_sessions(seed, max(16, count // 8))
    free_s = [0.0] * 8
    private = 1 << 40
    for session in sessions:
        lane = free_s.index(min(free_s))
        now_s = free_s[lane]
        for call in session.calls:
            now_s += capped_gap_s(call)
            full = session.chain[: call.input_tokens // BLOCK_TOKENS]
            partial = () if call.input_tokens % BLOCK_TOKENS == 0 else (private,)
            private += 1
            arrivals.append(Arrival(now_s * 1e3, call.input_tokens, call.output_tokens, (*full, *partial)))
            now_s += 0.5 + call.output_tokens / 100
        free_s[lane] = now_s
    arrivals.sort(key=lambda arrival: arrival.at_ms)
    return arrivals[:count]


def capped_gap_s(call: Call) -> float:
    """The wait before a call: tools up to 60 s, people up to 120 s."""
    return min(call.gap_s, 120.0 if call.human else 60.0)
