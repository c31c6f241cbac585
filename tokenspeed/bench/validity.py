# SPDX-License-Identifier: MIT
"""Did the server do the work that the workload says? Checks that a run can fail.

`Ledger` works out, from the prompts alone, how much of each one a server may have in its prefix cache; it
never asks the server. `check` holds what the server counted against that. Reuse above it means that
conversations were not fresh, or that the figure is false; in h0, whose contexts fit any server worth measuring, reuse
below it is invalid too. In the other workloads forgetting is a property of the server: it is scored, not
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.bench.record import Row

TOLERANCE: Final = 0.01
"""One point of reuse."""
TEMPLATE_TOKENS: Final = 64
"""What the head of a chat template may add to the reuse of a prompt sent as text."""


CLIENT_LATE_US_MAX: Final = 1_000_000
"""The limit on the time to the first token that most floors set."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question about a level's rows and its answer."""

    name: str
    passed: bool
    said: str


class Ledger:
    """Prefixes a server can have seen, by blocks of `block_tokens`; each level begins a new one.

    A block is known by the hash of all tokens up to its end, so one look-up a block finds the longest common
    prefix with everything added before.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._computed: set[int] = set()
        self._begun: set[int] = set()

    def implied(self, prompt: NDArray[np.int32]) -> tuple[int, int]:
        """Tokens of `prompt` that computed sequences hold, and that begun ones do: (least, most).

        Least is in whole blocks. Both leave the last token, which a server must compute to go on.
        """
        keys = self._keys(prompt)
        least = _run(keys, self._computed) * self._block_tokens
        begun = _run(keys, self._begun) * self._block_tokens
        most = begun + self._block_tokens - 1 if begun else 0
        return min(least, len(prompt) - 1), min(max(least, most), len(prompt) - 1)

    def begin(self, prompt: NDArray[np.int32]) -> None:
        """Note that a prompt was sent."""
        self._begun.update(self._keys(prompt))

    def finish(self, sequence: NDArray[np.int32]) -> None:
        """Note that all tokens of a sequence were computed."""
        keys = self._keys(sequence)
        self._computed.update(keys)
        self._begun.update(keys)

    def _keys(self, tokens: NDArray[np.int32]) -> list[int]:
        size = self._block_tokens * tokens.itemsize
        data = tokens.tobytes()
        keys: list[int] = []
        key = 0
        for end in range(size, len(data) + 1, size):
            key = hash((key, data[end - size : end]))
            keys.append(key)
        return keys


def _run(keys: Sequence[int], known: set[int]) -> int:
    for index, key in enumerate(keys):
        if key not in known:
            return index
    return len(keys)


def check(workload: str, rows: Sequence[Row]) -> tuple[Check, ...]:
    """Answer all questions about the rows of one level."""
    answered = [row for row in rows if not row.error]
    return (
        _answered(rows),
        _reuse(answered, strict=workload == "h0"),
        _counted("prompt tokens", [(row.sent_tokens, row.prompt_tokens) for row in answered]),
        _counted("output tokens", [(row.asked_tokens, row.output_tokens) for row in answered]),
        _replayed(answered),
    )


def check_client(late_us: int) -> Check:
    """Answer whether the client was on time; if not, its times are not the server's."""
    return Check("client", late_us <= CLIENT_LATE_US_MAX, f"held up for {late_us / 1e6:.3g} s at most")


def _answered(rows: Sequence[Row]) -> Check:
    errors = [row.error for row in rows if row.error]
    said = f"{len(rows) - len(errors)} of {len(rows)}" + (f"; first failure: {errors[0]}" if errors else "")
    return Check("answered", bool(rows) and not errors, said)


def _reuse(rows: Sequence[Row], *, strict: bool) -> Check:
    prompt = sum(row.prompt_tokens for row in rows)
    if not prompt:
        return Check("reuse", False, "no prompt tokens were counted")
    if any(row.cached_tokens is None for row in rows):
        return Check("reuse", False, "the server does not report cached tokens")
    hit = sum(row.cached_tokens or 0 for row in rows) / prompt
    least = sum(row.implied_least for row in rows) / prompt
    most = sum(row.implied_most for row in rows) / prompt
    said = f"{hit:.1%} where the prompts imply {least:.1%}" + ("" if most == least else f" to {most:.1%}")
    leaks = sum(map(_leaks, rows))
    if leaks or hit > most + TOLERANCE:
        said += f": conversations were not fresh, or the count is false ({leaks} requests beyond doubt)"
        return Check("reuse", False, said)
    if hit < least - TOLERANCE:
        return Check("reuse", not strict, said + ": the server forgot")
    return Check("reuse", True, said)


def _leaks(row: Row) -> bool:
    """Whether one request found more than one point above all that was ever sent before it."""
    template_tokens = TEMPLATE_TOKENS if row.sent_tokens is None else 0
    allowed = row.implied_most + TOLERANCE * row.prompt_tokens + template_tokens
    return (row.cached_tokens or 0) > allowed


def _counted(name: str, pairs: Sequence[tuple[int | None, int]]) -> Check:
    wrong = [(asked, counted) for asked, counted in pairs if asked is not None and asked != counted]
    if not wrong:
        return Check(name, True, "as asked")
    asked, counted = wrong[0]
    return Check(name, False, f"{len(wrong)} of {len(pairs)} differ; the first: {counted} for {asked}")


def _replayed(rows: Sequence[Row]) -> Check:
    wrong = sum(row.replayed is False for row in rows)
    asked = any(row.replayed is not None for row in rows)
    said = f"{wrong} not as recorded" if wrong else "as recorded" if asked else "free"
    return Check("answers", not wrong, said)
