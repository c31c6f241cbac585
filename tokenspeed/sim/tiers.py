# SPDX-License-Identifier: MIT
"""Copies between simulated tiers: they take time, come in any order, and fail in every way a copy can.

In: plans, and when somebody looks. Out: reports, as the real executor makes them (`exec.tiers`). While a copy is
under way its target holds nothing that could be read as right, and its source must not change; both are checked.
A copy that fails leaves its target so. One that finds its source corrupt leaves that unreadable, too: whoever
reads it after the report breaks the law of memory. Does not know which requests wait.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.base.clock import FakeClock
from tokenspeed.control import CopyResult, Plan, Tier
from tokenspeed.exec.protocol import Reports
from tokenspeed.sim.memory import Memory
from tokenspeed.sim.trace import Trace
from tokenspeed.sim.violation import ViolationError

LATE_US: Final = 3_000_000


@dataclass(frozen=True, slots=True)
class _Copy:
    copy_id: int
    source: tuple[int, int]  # tier, block
    target: tuple[int, int]
    content: tuple[int, ...]
    result: CopyResult


class SimCopies:
    """`memories` by tier; `fault_chance` is that of each copy to go wrong, or to be late."""

    def __init__(
        self,
        memories: dict[int, Memory],
        *,
        clock: FakeClock,
        random: Random,
        copy_us: int,
        fault_chance: float,
        trace: Trace,
    ) -> None:
        self._memories = memories
        self._clock = clock
        self._random = random
        self._copy_us = copy_us
        self._fault_chance = fault_chance
        self._trace = trace
        self._under_way: list[tuple[int, int, _Copy]] = []

    def start(self, plan: Plan) -> None:
        """Begin the copies of a plan."""
        columns = zip(
            plan.copy_ids.tolist(),
            zip(plan.copy_from_tiers.tolist(), plan.copy_from.tolist(), strict=True),
            zip(plan.copy_to_tiers.tolist(), plan.copy_to.tolist(), strict=True),
            strict=True,
        )
        for copy_id, source, target in columns:
            content = self._memories[source[0]].content(source[1])
            self._memories[target[0]].spoil(target[1])
            result, took_us = CopyResult.DONE, self._random.randrange(2 * self._copy_us + 1)
            if self._random.random() < self._fault_chance:
                corruptible = source[0] != Tier.DEVICE
                result = self._random.choice(
                    (CopyResult.FAILED, CopyResult.CORRUPT if corruptible else CopyResult.DONE)
                )
                took_us += self._random.choice((0, LATE_US))
                self._trace.reached[f"copies {result.name.lower()}, or late"] += 1
            copy = _Copy(copy_id, source, target, content, result)
            heapq.heappush(self._under_way, (self._clock.now_us() + took_us, copy_id, copy))
            self._trace.reached[
                f"copies {Tier(source[0]).name.lower()} to {Tier(target[0]).name.lower()}"
            ] += 1

    def reports(self, *, wait: bool) -> Reports | None:
        """What has come to its end; with `wait`, the clock moves to the next end where there is one."""
        if wait and self._under_way:
            self._clock.advance_us(max(0, self._under_way[0][0] - self._clock.now_us()))
        ended: list[_Copy] = []
        while self._under_way and self._under_way[0][0] <= self._clock.now_us():
            ended.append(heapq.heappop(self._under_way)[2])
        if not ended:
            return None
        ids: NDArray[np.uint64] = np.array([copy.copy_id for copy in ended], np.uint64)
        return Reports(ids, np.array([self._end(copy) for copy in ended], np.uint8))

    @property
    def under_way(self) -> int:
        """Copies that are not reported."""
        return len(self._under_way)

    def _end(self, copy: _Copy) -> CopyResult:
        source, target = self._memories[copy.source[0]], self._memories[copy.target[0]]
        if source.is_spoilt(copy.source[1]):  # as another copy of it has found
            return CopyResult.CORRUPT
        if source.content(copy.source[1]) != copy.content:
            raise ViolationError("I11", f"block {copy.source} changed while it was copied")
        if not target.is_spoilt(copy.target[1]):
            raise ViolationError("I11", f"block {copy.target} was written while a copy filled it")
        if copy.result == CopyResult.DONE:
            target.fill(copy.target[1], copy.content)
        elif copy.result == CopyResult.CORRUPT:
            source.spoil(copy.source[1])
        return copy.result
