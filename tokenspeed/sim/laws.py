# SPDX-License-Identifier: MIT
"""Two laws that need a memory of their own: what a prefix hit may be, and who must be planned next.

In: what the witness sees (accepted requests, plans, commits). Out: nothing, or a `ViolationError`. Neither
looks at the scheduler's state; both are told its counters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from tokenspeed.control import SchedulerOptions, Stats
from tokenspeed.sim import model
from tokenspeed.sim.oracle import Expectation
from tokenspeed.sim.violation import ViolationError

PLACES_PER_PRIORITY: Final = 64


class HitLaw:
    """A hit covers whole blocks that a request of the same salt computed and committed, and never the last
    token; and all such blocks, as long as none was evicted."""

    def __init__(self, options: SchedulerOptions, expectations: Mapping[int, Expectation]) -> None:
        self._options = options
        self._expectations = expectations
        self._computed: set[int] = set()  # fingerprints of histories that end with a full, committed block
        self._boundaries: dict[int, list[int]] = {}

    def commit(self, request_id: int, tokens: int) -> None:
        """The KV of the request's first `tokens` tokens is committed."""
        self._computed.update(self._boundaries_of(request_id)[: tokens // self._options.block_tokens])

    def check(self, request_id: int, cached: int, history_tokens: int, stats: Stats) -> bool:
        """Judge a hit; True if it was known exactly, and not empty."""
        block_tokens = self._options.block_tokens
        most = 0
        if self._options.prefix_cache:
            for fingerprint in self._boundaries_of(request_id)[: (history_tokens - 1) // block_tokens]:
                if fingerprint not in self._computed:
                    break
                most += block_tokens
        # What was evicted is gone; the last step of a retracted request was computed but is not kept.
        least = 0 if stats.evictions or stats.retractions or stats.blocks_corrupt else most
        if not least <= cached <= most:
            raise ViolationError(
                "cache", f"request {request_id}: a hit of {cached} tokens, {least} to {most} are possible"
            )
        return least > 0

    def _boundaries_of(self, request_id: int) -> list[int]:
        """Fingerprints of a request's history, answer included, at the end of each full block."""
        if request_id not in self._boundaries:
            expectation = self._expectations[request_id]
            history = model.fold(model.root(expectation.salt), expectation.prompt + expectation.answer)
            self._boundaries[request_id] = history[self._options.block_tokens :: self._options.block_tokens]
        return self._boundaries[request_id]


class ProgressLaw:
    """I10: of the open requests that have run, or of all where none has, the first by rank is planned, or
    waits for a step in flight, within K plans. Those behind it follow, since it ends after finitely many."""

    def __init__(self, options: SchedulerOptions) -> None:
        self._ranks: dict[int, tuple[int, int]] = {}
        self._waits = 0
        self._waits_max = _waits_max(options)

    def accept(self, request_id: int, priority: int) -> None:
        """The request is in the queue: first come, first served, a unit of priority is worth some places."""
        place = len(self._ranks)
        self._ranks[request_id] = (place - PLACES_PER_PRIORITY * priority, place)

    def check(self, open_ids: Collection[int], ran_ids: Collection[int], busy_ids: Collection[int]) -> None:
        """Judge a call of plan: `busy_ids` are planned now or in flight."""
        candidates = [request_id for request_id in open_ids if request_id in ran_ids] or open_ids
        leader = min(candidates, key=self._ranks.__getitem__, default=None)
        self._waits = 0 if leader is None or leader in busy_ids else self._waits + 1
        if self._waits > self._waits_max:
            raise ViolationError("I10", f"request {leader} is first and {self._waits} plans passed it over")


def _waits_max(options: SchedulerOptions) -> int:
    """K: how many plans in a row may pass over the first of the running requests.

    Its block may be held by the steps in flight, at most two. Where a step has fewer rows than there are
    requests, the rows go round. With a single row, decoding goes before prefill, and ends within a context.
    """
    if options.rows_per_step_max == 1:
        return options.context_tokens_max
    return 2 + -(-options.slots_max // options.rows_per_step_max)
