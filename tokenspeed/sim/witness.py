# SPDX-License-Identifier: MIT
"""The real scheduler under observation: every call passes through, and every answer is judged.

In: the calls of the loop. Out: the scheduler's own answers, unchanged. After every call that changes
anything the control plane's own assertions run (`check`). Beside the loop's calls, and only if the world is
strange, it makes calls that must mean nothing: repeated, late and unknown results, ids twice, cancels of
nobody.

Judged here: admission (against the documented bounds), I8 and tokens of every outcome (an `Oracle` of its
own), I9, I10, prefix hits (against what was really computed and committed), and that nothing leaks. Knows
the plan's rows but not what they compute: that is the executor's part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from tokenspeed.control import Outcome, Plan, Scheduler, SchedulerOptions, SubmitStatus
from tokenspeed.sim import model
from tokenspeed.sim.oracle import Expectation, Oracle
from tokenspeed.sim.trace import Trace
from tokenspeed.sim.violation import ViolationError

FINISHES: Final = (None, "stop", "length", "cancelled", "error")
NOBODY: Final = 1 << 40  # a request id that no client has
NO_STEP: Final = 1 << 40
PLACES_PER_PRIORITY: Final = 64
PLANS_MAX: Final = 20_000


@dataclass(slots=True)
class Launched:
    """A step between plan and commit: its rows as (request id, tokens in KV after it), and those that are
    sampled."""

    step: int
    ends: list[tuple[int, int]]
    samples: list[int]


class Witness(Scheduler):
    """A scheduler that fails its seed at the first answer that is not right."""

    def __init__(
        self,
        options: SchedulerOptions,
        expectations: Mapping[int, Expectation],
        *,
        strange_chance: float,
        random: Random,
        trace: Trace,
    ) -> None:
        super().__init__(options)
        self.oracle = Oracle("the loop")
        self._options = options
        self._expectations = expectations
        self._strange_chance = strange_chance
        self._random = random
        self._trace = trace
        self._ranks: dict[int, tuple[int, int]] = {}
        self._launched: deque[Launched] = deque()
        self._committed = NO_STEP
        self._computed: set[int] = set()  # fingerprints at the ends of blocks whose steps are committed
        self._boundaries: dict[int, list[int]] = {}
        self._bound: set[int] = set()
        self._failed: set[int] = (
            set()
        )  # open after a failed row: sent back before it was known, or wrongly so
        self._plans = 0
        self._leader_waits = 0
        self._leader_waits_max = _leader_waits_max(options)
        self._hit_tokens = 0
        self._rebinds = 0
        self._cancels = 0

    def submit(
        self,
        request_id: int,
        tokens: np.ndarray,
        *,
        tokens_max: int,
        tokens_min: int = 0,
        stop_ids: np.ndarray,
        salt: bytes = b"",
        priority: int = 0,
        now_us: int,
    ) -> SubmitStatus:
        """As `Scheduler.submit`."""
        due = self._status_due(request_id, len(tokens), tokens_max)
        status = super().submit(
            request_id,
            tokens,
            tokens_max=tokens_max,
            tokens_min=tokens_min,
            stop_ids=stop_ids,
            salt=salt,
            priority=priority,
            now_us=now_us,
        )
        self._trace.note(
            "submit {}: {} tokens, {} new at most: {}", request_id, len(tokens), tokens_max, status.name
        )
        if status != due:
            raise ViolationError("admission", f"request {request_id}: {status.name}, {due.name} was due")
        if status == SubmitStatus.ACCEPTED:
            self.oracle.accept(self._expectations[request_id])
            self._ranks[request_id] = (len(self._ranks) - PLACES_PER_PRIORITY * priority, len(self._ranks))
        self.check()
        return status

    def cancel(self, request_id: int) -> bool:
        """As `Scheduler.cancel`."""
        account = self.oracle.live.get(request_id)
        due = account is not None and not account.leaving_as
        found = super().cancel(request_id)
        self._trace.note("cancel {}: {}", request_id, found)
        if found != due:
            raise ViolationError("I8", f"cancel of request {request_id} says {found}, {due} was due")
        if found:
            self._trace.reached[f"cancelled while {self._phase(request_id)}"] += 1
            self._cancels += 1
            self.oracle.leave(request_id, "cancelled", must=True)
        self.check()
        return found

    def plan(self, now_us: int) -> Plan | None:
        """As `Scheduler.plan`."""
        self._plans += 1
        if self._plans > PLANS_MAX:
            raise ViolationError("I10", f"no rest after {PLANS_MAX} plans")
        if self._is_strange():
            self._call_strangely()
        plan = super().plan(now_us)
        self.check()
        if plan is not None:
            self._note_plan(plan)
        self._check_progress(set() if plan is None else set(plan.request_ids.tolist()))
        return plan

    def commit(self, step: int, tokens: np.ndarray) -> Outcome:
        """As `Scheduler.commit`."""
        launched = self._launched[0]
        if launched.step != step:
            raise ViolationError("I9", f"the loop commits step {step} before step {launched.step}")
        live = {request_id for request_id, account in self.oracle.live.items() if not account.leaving_as}
        failed = {launched.samples[index] for index in np.flatnonzero(tokens < 0).tolist()} & live
        for request_id in failed:
            self.oracle.leave(request_id, "error", must=False)
        if self._is_strange():
            self._commit_strangely()
        outcome = super().commit(step, tokens)
        self._launched.popleft()
        self._committed = step
        self.check()
        for request_id, end in launched.ends:
            if request_id in live - failed:
                self._computed.update(self._boundaries_of(request_id)[: end // self._options.block_tokens])
        self._hear(outcome)
        for request_id in failed & self.oracle.live.keys():
            self.oracle.stay(request_id)
            self._failed.add(request_id)
        if self._is_strange():
            self._commit_strangely()
        return outcome

    def drain(self) -> Outcome:
        """As `Scheduler.drain`."""
        outcome = super().drain()
        self._hear(outcome)
        return outcome

    def tokens(self, request_id: int) -> np.ndarray:
        """As `Scheduler.tokens`."""
        tokens = super().tokens(request_id)
        if tuple(tokens.tolist()) != self.oracle.live[request_id].history:
            raise ViolationError(
                "tokens", f"the scheduler's tokens of request {request_id} are not its history"
            )
        return tokens

    def flush_prefix(self) -> int:
        """As `Scheduler.flush_prefix`."""
        freed = super().flush_prefix()
        self.check()
        return freed

    def rest(self) -> None:
        """The world has come to rest: nothing may be held, and the counters must agree with what was seen."""
        self.oracle.close()
        if not self.idle:
            raise ViolationError("leak", "not idle when nothing is open")
        stats = self.stats()
        held = (stats.waiting, stats.running, stats.blocks_leased, stats.blocks_in_flight)
        if any(held):
            raise ViolationError("leak", f"waiting, running, leased, in flight are {held} at rest")
        counted = (stats.tokens_hit, stats.steps)
        seen = (self._hit_tokens, self._trace.reached["steps"])
        if counted != seen:
            raise ViolationError("leak", f"hit tokens, steps: counted {counted}, seen {seen}")
        # A retraction shows when the request is bound again, unless it left before.
        if not self._rebinds <= stats.retractions <= self._rebinds + self._cancels:
            raise ViolationError(
                "leak", f"{stats.retractions} retractions counted, {self._rebinds} requests bound again"
            )
        for name in ("retractions", "evictions", "blocks_deduplicated", "results_late"):
            self._trace.reached[name.replace("_", " ")] += getattr(stats, name)
        self.flush_prefix()
        if self.stats().blocks_free != self._options.blocks_total:
            raise ViolationError(
                "leak",
                f"{self.stats().blocks_free} of {self._options.blocks_total} blocks free after a flush",
            )

    def _status_due(self, request_id: int, prompt_tokens: int, tokens_max: int) -> SubmitStatus:
        if prompt_tokens == 0:
            return SubmitStatus.EMPTY
        if request_id in self.oracle.live:
            return SubmitStatus.DUPLICATE
        if prompt_tokens + tokens_max > self._options.context_tokens_max:
            return SubmitStatus.TOO_LONG
        if self._blocks(prompt_tokens + tokens_max - 1) > self._options.blocks_total:
            return SubmitStatus.EXCEEDS_POOL
        if self.stats().waiting >= self._options.waiting_max:
            return SubmitStatus.QUEUE_FULL
        return SubmitStatus.ACCEPTED

    def _note_plan(self, plan: Plan) -> None:
        request_ids, starts, lengths = plan.request_ids.tolist(), plan.starts.tolist(), plan.lengths.tolist()
        bound = zip(
            plan.bound_request_ids.tolist(),
            plan.bound_slots.tolist(),
            plan.cached_tokens.tolist(),
            strict=True,
        )
        for request_id, slot, cached in bound:
            self._trace.note("bind request {} to slot {}, {} tokens cached", request_id, slot, cached)
            self._check_hit(request_id, cached)
            self._hit_tokens += cached
            self._failed.discard(request_id)
            if request_id in self._bound:
                self._rebinds += 1
            self._bound.add(request_id)
        rows = list(zip(request_ids, starts, lengths, strict=True))
        self._trace.note("step {}: (request, start, length) {}", plan.step, rows)
        for request_id in request_ids:
            account = self.oracle.live.get(request_id)
            if account is None or account.leaving_as:
                raise ViolationError("I8", f"step {plan.step} runs request {request_id}, which has ended")
            if request_id in self._failed:
                raise ViolationError(
                    "I8", f"step {plan.step} runs request {request_id} on, though a row of it failed"
                )
        ends = [(request_id, start + length) for request_id, start, length in rows]
        samples = [
            request_id
            for request_id, sampled in zip(request_ids, plan.sampled.tolist(), strict=True)
            if sampled
        ]
        self._launched.append(Launched(plan.step, ends, samples))

    def _check_hit(self, request_id: int, cached: int) -> None:
        boundaries = self._boundaries_of(request_id)
        block_tokens = self._options.block_tokens
        most = 0
        for fingerprint in boundaries[: (len(self.oracle.live[request_id].history) - 1) // block_tokens]:
            if fingerprint not in self._computed:
                break
            most += block_tokens
        if not self._options.prefix_cache:
            most = 0
        # What was evicted is gone; the last step of a retracted request was computed but is not kept.
        stats = self.stats()
        least = 0 if stats.evictions or stats.retractions else most
        self._trace.reached["prefix hits known to be complete"] += least > 0
        if not least <= cached <= most:
            raise ViolationError(
                "cache", f"request {request_id}: a hit of {cached} tokens, {least} to {most} are possible"
            )
        self._trace.reached["prefix hits"] += cached > 0
        self._trace.reached["prefix hit tokens"] += cached

    def _check_progress(self, planned: set[int]) -> None:
        """I10: of the open requests that have run, or of all where none has, the first by rank is planned,
        or waits for a step in flight. Those behind it follow, since it ends after finitely many plans."""
        open_ids = [request_id for request_id, account in self.oracle.live.items() if not account.leaving_as]
        ran_ids = [request_id for request_id in open_ids if request_id in self._bound]
        leader = min(ran_ids or open_ids, key=self._ranks.__getitem__, default=None)
        waits = leader is not None and leader not in planned
        if waits and not any(leader == request_id for step in self._launched for request_id, _ in step.ends):
            self._leader_waits += 1
        else:
            self._leader_waits = 0
        if self._leader_waits > self._leader_waits_max:
            raise ViolationError(
                "I10", f"request {leader} is first and was not planned {self._leader_waits} times"
            )

    def _hear(self, outcome: Outcome) -> None:
        rows = zip(
            outcome.request_ids.tolist(), outcome.tokens.tolist(), outcome.finish.tolist(), strict=True
        )
        for request_id, token, finish in rows:
            self._trace.note("request {} says {}, finish {}", request_id, token, FINISHES[finish])
            self.oracle.hear(request_id, [] if token < 0 else [token], FINISHES[finish])

    def _is_strange(self) -> bool:
        return self._random.random() < self._strange_chance

    def _call_strangely(self) -> None:
        """A cancel of nobody, and an id that is in use."""
        self.cancel(NOBODY)
        for request_id, account in self.oracle.live.items():
            if account.leaving_as:
                self.cancel(request_id)
                break
        for request_id, account in self.oracle.live.items():
            if account.leaving_as:
                continue
            none = np.array([], dtype=np.int32)
            self.submit(request_id, np.array([1], dtype=np.int32), tokens_max=1, stop_ids=none, now_us=0)
            break

    def _commit_strangely(self) -> None:
        """A result that came before, one of no step, one that overtakes the step it follows, one of the
        wrong size."""
        step, samples = self._random.choice([(NO_STEP, 1), (self._committed, 1), *self._overtaking()])
        before = _counters(self)
        outcome = super().commit(step, np.full(samples, 1, dtype=np.int32))
        self.check()
        if len(outcome.request_ids) or _counters(self) != before:
            raise ViolationError("I9", f"a strange result of step {step} was taken")
        if self._launched:
            with suppress(ValueError):
                super().commit(
                    self._launched[0].step, np.full(len(self._launched[0].samples) + 1, 1, dtype=np.int32)
                )
                raise ViolationError("I9", "a result of the wrong size was taken")
        self._trace.reached["strange results"] += 1

    def _overtaking(self) -> list[tuple[int, int]]:
        return [(launched.step, len(launched.samples)) for launched in list(self._launched)[1:]]

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._options.block_tokens)

    def _boundaries_of(self, request_id: int) -> list[int]:
        """Fingerprints of a request's history, answer included, at the end of each full block."""
        if request_id not in self._boundaries:
            expectation = self._expectations[request_id]
            history = model.fold(model.root(expectation.salt), expectation.prompt + expectation.answer)
            self._boundaries[request_id] = history[self._options.block_tokens :: self._options.block_tokens]
        return self._boundaries[request_id]

    def _phase(self, request_id: int) -> str:
        if any(request_id == planned for step in self._launched for planned, _ in step.ends):
            return "in flight"
        return "running" if request_id in self._bound else "waiting"


def _counters(scheduler: Scheduler) -> tuple[int, ...]:
    stats = scheduler.stats()
    return (
        stats.waiting,
        stats.running,
        stats.blocks_free,
        stats.blocks_leased,
        stats.blocks_in_flight,
        stats.steps,
    )


def _leader_waits_max(options: SchedulerOptions) -> int:
    """K of I10: how many plans in a row may pass over the first of the running requests.

    Its block may be held by the steps in flight, at most two. Where a step has fewer rows than there are
    requests, the rows go round. With a single row, decoding goes before prefill, and ends within a context.
    """
    if options.rows_per_step_max == 1:
        return options.context_tokens_max
    return 2 + -(-options.slots_max // options.rows_per_step_max)
