# SPDX-License-Identifier: MIT
"""Recorded agent sessions as the trace simulator plays them: gaps, lengths, names of blocks of tokens.

In: a file of `agent_replay` lines (gzip or not): {id, chain512, turns: [[gap_s, kind, input, new, output]]},
where chain512[j] names the tokens 0 .. 512 (j + 1) of the session's stream and kind is start, tool or human;
beside it, if there is one, `agent_sessions.jsonl.gz` with the names of the tools called. Out: `Session`s. A
call's prompt is the first `input_tokens` of the stream, its answer the `output_tokens` after that, so equal
chains are equal prompts. Holds no text.

Invariants: calls of a session only append; every position of the stream has a name in the chain.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tokenspeed.base.errors import SetupError

CHAIN_TOKENS: Final = 512
"""Tokens that one id of a chain names."""
GAP_MAX_S: Final = {"start": 0.0, "tool": 60.0, "human": 120.0}
"""The longest wait that is played, by what is waited for."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a session, sent `gap_us` after the answer before it was complete."""

    gap_us: int
    human: bool
    gap_key: int  # of the tool that the gap waited for; 0: unknown, or a person
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    """A recorded session. `chain` names every 512 tokens of its stream, the last ones privately."""

    id: str
    chain: np.ndarray  # [ceil(stream / 512)] int64
    calls: tuple[Call, ...]


class _Spoken(msgspec.Struct):
    id: str
    messages: list[dict[str, Any]]
    turns: list[dict[str, Any]]


def read_sessions(path: Path, *, gap_scale: float = 1.0) -> list[Session]:
    """The sessions of a file, or of `dev/agent_replay.jsonl.gz` below a folder of traces."""
    if path.is_dir():
        path = path / "dev" / "agent_replay.jsonl.gz"
    entries = [msgspec.json.decode(line) for line in _lines(path)]
    tools = _tools(path.with_name("agent_sessions.jsonl.gz"))
    private = 1 + max((int(name) for entry in entries for name in entry["chain512"]), default=0)
    sessions: list[Session] = []
    for entry in entries:
        session = _session(entry, tools.get(entry["id"], ()), private, gap_scale)
        private += len(session.chain)
        sessions.append(session)
    if not sessions:
        raise SetupError(f"--trace: {path} holds no session")
    return sessions


def working_set_tokens(sessions: Sequence[Session], count: int) -> int:
    """What `count` live sessions hold: the mean over calls of prompt and answer, times `count`."""
    held = [call.input_tokens + call.output_tokens for session in sessions for call in session.calls]
    return round(count * float(np.mean(held)))


def _session(entry: dict[str, Any], tools: Sequence[int], private: int, gap_scale: float) -> Session:
    calls: list[Call] = []
    end = 0
    for number, (gap_s, kind, input_tokens, _, output_tokens) in enumerate(entry["turns"]):
        if input_tokens <= end - (number == 0):
            raise SetupError(
                f"--trace: session {entry['id']}: call {number} does not append to the one before"
            )
        gap_us = round(min(gap_s or 0.0, GAP_MAX_S[kind]) * gap_scale * 1e6)
        human = kind == "human"
        gap_key = tools[number - 1] if number and not human and number <= len(tools) else 0
        calls.append(Call(gap_us, human, gap_key, input_tokens, max(1, output_tokens)))
        end = input_tokens + max(1, output_tokens)
    names = entry["chain512"][: end // CHAIN_TOKENS]
    rest = -(-end // CHAIN_TOKENS) - len(names)
    chain = np.array([*names, *range(private, private + rest)], dtype=np.int64)
    return Session(entry["id"], chain, tuple(calls))


def _tools(path: Path) -> dict[str, tuple[int, ...]]:
    """By session and call: the tool that the answer called, as a number of its name; 0 where there is none."""
    if not path.is_file():
        return {}
    decoder = msgspec.json.Decoder(_Spoken)
    found: dict[str, tuple[int, ...]] = {}
    for line in _lines(path):
        entry = decoder.decode(line)
        found[entry.id] = tuple(_tool(entry.messages[turn["i"]]) for turn in entry.turns)
    return found


def _tool(message: dict[str, Any]) -> int:
    calls = message.get("tool_calls") or ()
    if not calls:
        return 0
    name: str = calls[-1]["function"]["name"]
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            yield from lines
    except OSError as error:
        raise SetupError(f"--trace: {path}: {error}") from error
