# SPDX-License-Identifier: MIT
"""The real scheduler under observation: every call passes through, and every answer is judged.

In: the calls of the loop. Out: the scheduler's own answers, unchanged. After every call that changes
anything the control plane's own assertions run (`check`). Beside the loop's calls, and only if the world is
strange, it makes calls that must mean nothing: repeated, late and unknown results, ids twice, cancels of
nobody.

Judged here: admission (against the documented bounds), I8 and tokens of every outcome (an `Oracle` of its
own), I9, I10 and prefix hits (`laws`), and that nothing leaks. Knows a plan's rows but not what they compute:
that is the executor's part.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np

from tokenspeed.control import CopyResult, Outcome, Plan, Scheduler, SchedulerOptions, SubmitStatus
from tokenspeed.sim.laws import HitLaw, ProgressLaw
from tokenspeed.sim.oracle import Expectation, Oracle
from tokenspeed.sim.trace import Trace
from tokenspeed.sim.violation import ViolationError

FINISHES: Final = (None, "stop", "length", "cancelled", "error")
NOBODY: Final = 1 << 40  # a request id that no client has
NO_STEP: Final = 1 << 40
PLANS_MAX: Final = 20_000


@dataclass(slots=True)
class Launched:
    """A step between plan and commit."""

    step: int
    ends: dict[int, int]  # request id -> its tokens in KV after this step
    sampled_ids: list[int]


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
        self._hit_law = HitLaw(options, expectations)
        self._progress_law = ProgressLaw(options)
        self._launched: deque[Launched] = deque()
        self._committed = NO_STEP
        self._bound: set[int] = set()
        self._bound_in: dict[int, int] = {}  # the step that bound a request last
        self._failed: set[int] = set()  # open after a failed row: sent back before that, or wrongly
        self._plans = 0
        self._seen: Counter[str] = Counter()  # by the names of the scheduler's own counters
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
        **terms: Any,
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
            **terms,
        )
        self._trace.note(
            "submit {}: {} tokens, {} new at most: {}", request_id, len(tokens), tokens_max, status.name
        )
        if status != due:
            raise ViolationError("admission", f"request {request_id}: {status.name}, {due.name} was due")
        if status == SubmitStatus.ACCEPTED:
            self.oracle.accept(self._expectations[request_id])
            self._progress_law.accept(request_id, priority)
            self._seen["accepted"] += 1
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
        busy_ids = {request_id for launched in self._launched for request_id in launched.ends}
        stats = self.stats()
        # Else the first may wait for its KV, or a copy have the blocks it needs; or a corrupt block has sent it back.
        if stats.transfers == 0 and stats.blocks_corrupt == 0:
            self._progress_law.check(self._open_ids(), self._bound, busy_ids)
        return plan

    def commit(self, step: int, tokens: np.ndarray, now_us: int = 0, step_us: int = 0) -> Outcome:
        """As `Scheduler.commit`."""
        launched = self._launched[0]
        if launched.step != step:
            raise ViolationError("I9", f"the loop commits step {step} before step {launched.step}")
        open_ids = self._open_ids()
        failed = {launched.sampled_ids[index] for index in np.flatnonzero(tokens < 0).tolist()} & open_ids
        for request_id in failed:
            self.oracle.leave(request_id, "error", must=False)
        if self._is_strange():
            self._commit_strangely()
        outcome = super().commit(step, tokens, now_us, step_us)
        self._launched.popleft()
        self._committed = step
        self.check()
        for request_id in launched.ends.keys() & open_ids - failed:
            self._hit_law.commit(request_id, launched.ends[request_id])
        self._hear(outcome)
        for request_id in failed & self.oracle.live.keys():
            self.oracle.stay(request_id)
            if self._bound_in[request_id] <= step:  # else it was sent back, and has begun anew
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

    def transferred(self, copy_ids: np.ndarray, results: np.ndarray, now_us: int) -> None:
        """As `Scheduler.transferred`; strange ones mean nothing, and are made."""
        super().transferred(copy_ids, results, now_us)
        if self._is_strange():
            strange = np.concatenate([copy_ids, np.array([NOBODY, 0], np.uint64)])
            super().transferred(strange, np.full(len(strange), CopyResult.FAILED, np.uint8), now_us)
        self._trace.note("copies {}: {}", copy_ids.tolist(), results.tolist())
        self.check()

    def corrupt(self, blocks: np.ndarray, now_us: int) -> None:
        """As `Scheduler.corrupt`."""
        super().corrupt(blocks, now_us)
        self._trace.note("blocks {} are corrupt", blocks.tolist())
        self.check()

    def rest(self) -> None:
        """The world has come to rest: nothing may be held, and the counters must agree with what was seen."""
        self.oracle.close()
        if not self.idle:
            raise ViolationError("leak", "not idle when nothing is open")
        stats = self.stats()
        held = (stats.waiting, stats.running, stats.blocks_leased, stats.blocks_in_flight)
        if any(held):
            raise ViolationError("leak", f"waiting, running, leased, in flight are {held} at rest")
        for name, seen in self._seen.items():
            if getattr(stats, name) != seen:
                raise ViolationError("leak", f"{name} is {getattr(stats, name)}, {seen} were seen")
        # A retraction shows when the request is bound again, unless it left before.
        if not self._rebinds <= stats.retractions <= self._rebinds + self._cancels:
            raise ViolationError(
                "leak", f"{stats.retractions} retractions counted, {self._rebinds} requests bound again"
            )
        names = (
            "retractions",
            "evictions",
            "blocks_deduplicated",
            "results_late",
            "blocks_promoted",
            "scrubs",
        )
        for name in names:
            self._trace.reached[name.replace("_", " ")] += getattr(stats, name)
        self.flush_prefix()
        stats = self.stats()
        for tier in (stats, stats.host, stats.disk):
            free = tier.blocks_free + tier.blocks_quarantined
            if free != tier.blocks_total:
                raise ViolationError("leak", f"{free} of {tier.blocks_total} blocks free after a flush")

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
        bound = zip(plan.bound_request_ids.tolist(), plan.cached_tokens.tolist(), strict=True)
        if ended := set(request_ids) - self._open_ids():
            raise ViolationError("I8", f"step {plan.step} runs requests {ended}, which have ended")
        for request_id, cached in bound:
            self._trace.note("bind request {}, {} tokens cached", request_id, cached)
            self._note_hit(request_id, cached)
            self._rebinds += request_id in self._bound
            self._bound.add(request_id)
            self._bound_in[request_id] = plan.step
            self._failed.discard(request_id)
        if running := self._failed & set(request_ids):
            raise ViolationError("I8", f"step {plan.step} goes on with requests {running} after a failed row")
        rows = list(zip(request_ids, starts, lengths, strict=True))
        self._trace.note("step {}: (request, start, length) {}", plan.step, rows)
        self._seen["steps"] += 1
        self._seen["rows"] += len(rows)
        self._seen["tokens_computed"] += sum(lengths)
        ends = {request_id: start + length for request_id, start, length in rows}
        sampled_ids: list[int] = plan.request_ids[plan.sampled.view(np.bool_)].tolist()
        self._launched.append(Launched(plan.step, ends, sampled_ids))

    def _note_hit(self, request_id: int, cached: int) -> None:
        history_tokens = len(self.oracle.live[request_id].history)
        complete = self._hit_law.check(request_id, cached, history_tokens, self.stats())
        self._seen["tokens_queried"] += history_tokens
        self._seen["tokens_hit"] += cached
        self._trace.reached["prefix hits known to be complete"] += complete
        self._trace.reached["prefix hits"] += cached > 0
        self._trace.reached["prefix hit tokens"] += cached

    def _hear(self, outcome: Outcome) -> None:
        rows = zip(
            outcome.request_ids.tolist(), outcome.tokens.tolist(), outcome.finish.tolist(), strict=True
        )
        for request_id, token, finish in rows:
            self._trace.note("request {} says {}, finish {}", request_id, token, FINISHES[finish])
            self._seen["tokens_sampled"] += token >= 0
            self._seen["finished"] += finish > 0
            self.oracle.hear(request_id, [] if token < 0 else [token], FINISHES[finish])

    def _is_strange(self) -> bool:
        return self._random.random() < self._strange_chance

    def _call_strangely(self) -> None:
        """A cancel of nobody, and an id that is in use."""
        self.cancel(NOBODY)
        for request_id in sorted(self._open_ids())[:1]:
            one, none = np.ones(1, dtype=np.int32), np.zeros(0, dtype=np.int32)
            self.submit(request_id, one, tokens_max=1, stop_ids=none, now_us=0)

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
            oldest = self._launched[0]
            with suppress(ValueError):
                super().commit(oldest.step, np.full(len(oldest.sampled_ids) + 1, 1, dtype=np.int32))
                raise ViolationError("I9", "a result of the wrong size was taken")
        self._trace.reached["strange results"] += 1

    def _overtaking(self) -> list[tuple[int, int]]:
        return [(launched.step, len(launched.sampled_ids)) for launched in list(self._launched)[1:]]

    def _open_ids(self) -> set[int]:
        """Requests that have neither ended nor been cancelled."""
        return {request_id for request_id, account in self.oracle.live.items() if not account.leaving_as}

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._options.block_tokens)

    def _phase(self, request_id: int) -> str:
        if any(request_id in launched.ends for launched in self._launched):
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
