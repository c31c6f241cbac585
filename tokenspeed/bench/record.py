# SPDX-License-Identifier: MIT
"""What a run of the agentic benchmark leaves: raw rows, and all it takes to read them later.

One JSON file a run. Scores are computed from the rows whenever they are shown and never read from the file,
so that no file can claim more than its rows do. Times are integer microseconds since the level began: sums of
them are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tokenspeed.base.errors import SetupError


@dataclass(frozen=True, slots=True)
class Row:
    """One request: what was asked, when its tokens came, what the server counted."""

    conversation: str
    turn: int
    """0 is the first of its conversation."""
    asked_tokens: int
    sent_us: int
    end_us: int
    """When the exchange ended, well or not."""
    first_us: int = 0
    """Arrival of the first token."""
    gaps_us: tuple[int, ...] = ()
    """Between one token event and the next; the first token has none. Their sum is `last_us - first_us`."""
    event_tokens: tuple[int, ...] | None = None
    """Tokens in each event, the first one's included; None where the server does not send ids."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    """As the server counted them; None when it does not say."""
    sent_tokens: int | None = None
    """Token ids that were sent; None where text was sent."""
    implied_least: int = 0
    """Prompt tokens that a server which forgets nothing finds in its prefix cache."""
    implied_most: int = 0
    """The same, if prompts still being computed may be shared too. More than this is a leak."""
    replayed: bool | None = None
    """The answer was the recorded one, id for id; None where that was not asked."""
    error: str | None = None

    @property
    def last_us(self) -> int:
        return self.first_us + sum(self.gaps_us)

    @property
    def ttft_us(self) -> int:
        return self.first_us - self.sent_us

    @property
    def latency_us(self) -> int:
        return self.last_us - self.sent_us

    @property
    def user_tps(self) -> float | None:
        """(output - 1) / (latency - TTFT) in tokens per second; None when there is nothing to divide."""
        spent_us = self.latency_us - self.ttft_us
        if self.error or self.output_tokens < 2 or spent_us <= 0:
            return None
        return (self.output_tokens - 1) * 1e6 / spent_us


@dataclass(frozen=True, slots=True)
class Level:
    """One repeat of one level: `load` sessions at once, or in open loop `load` requests per second."""

    load: float
    repeat: int
    rows: tuple[Row, ...]
    left_out: int = 0
    """Requests of the workload that do not fit the server's context; they were not sent."""
    occupancy: tuple[tuple[int, float], ...] = ()
    """(microseconds, share of KV that requests hold); empty where the server does not say."""
    client_late_us: int = 0
    """The longest time for which the client itself was held up."""

    @property
    def duration_s(self) -> float:
        """From the first request sent to the end of the last answer."""
        return (max(row.end_us for row in self.rows) - min(row.sent_us for row in self.rows)) / 1e6


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    name: str
    workload: str
    commit: str
    started_at: str
    seed: int
    device: str
    gpus: int
    config: dict[str, Any]
    """The command line as resolved."""
    server: dict[str, Any]
    """The server's own card of the model, and its `Server` header."""
    answers: str
    """What follows a prompt in the next one: `forced`, `real`, `recorded` or `filler`."""
    levels: tuple[Level, ...]
    floors: tuple[float, ...] = (70.0, 100.0, 200.0)
    benchmark: str = "agentic"

    @property
    def open_loop(self) -> bool:
        return self.workload == "h2"


def write(result: Result, path: Path) -> None:
    """Write one result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(result) + b"\n")


def read(path: Path) -> Result:
    """Read one result; raises `SetupError` when the file is not one."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise SetupError(f"{path}: not a result of `bench agentic`: {error}") from error
    if not result.levels or any(not level.rows for level in result.levels):
        raise SetupError(f"{path}: holds no rows")
    return result
