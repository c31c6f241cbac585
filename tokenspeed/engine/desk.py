# SPDX-License-Identifier: MIT
"""The requests the core has open: wire messages in, scheduler calls out; outcomes in, wire messages out.

Between the loop, which knows only order, and the control plane, which knows only ids. Holds per open
request what the control plane does not need: its sampling, its prompt's length, its times. Does not plan,
run or touch tensors.

Invariants: an id is open from its accepted `Generate` until its closing message, and every accepted id gets
exactly one; results and cancels of ids that are not open are normal and say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import numpy as np

from tokenspeed.base.errors import RequestError
from tokenspeed.base.log import get_logger
from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.control import Finish, IdleClass, MissReason, Outcome, Plan, Scheduler, SubmitStatus
from tokenspeed.engine import admission, wire
from tokenspeed.engine.constraints import Constraints
from tokenspeed.exec.protocol import Reports, RowMasks, StepResult
from tokenspeed.obs.sample import CoreSample, SessionAccount
from tokenspeed.obs.timeline import Timeline

_log = get_logger("engine")
_FINISH: Final[dict[int, wire.Finish | None]] = {0: None, 1: "stop", 2: "length", 3: "cancelled", 4: "error"}
_IDLE: Final = {"unknown": IdleClass.UNKNOWN, "tool": IdleClass.TOOL, "turn": IdleClass.TURN}
_RETRIES: Final = frozenset({SubmitStatus.QUEUE_FULL, SubmitStatus.DOOR_FULL})
_REFUSAL: Final[dict[SubmitStatus, wire.Refusal]] = {
    SubmitStatus.QUEUE_FULL: "queue_full",
    SubmitStatus.DOOR_FULL: "door_full",
    SubmitStatus.TOO_LONG: "too_long",
    SubmitStatus.EXCEEDS_POOL: "exceeds_pool",
    SubmitStatus.DUPLICATE: "duplicate",
    SubmitStatus.EMPTY: "empty",
}
_MISS: Final[dict[int, wire.CacheMiss | None]] = {
    MissReason.NONE: None,
    MissReason.NEW: "new",
    MissReason.REWRITTEN: "rewritten",
    MissReason.VOLATILE_LINE: "volatile_line",
    MissReason.EVICTED: "evicted",
}
_FAULT: Final = "the model produced values that are not finite; this request was ended, others go on"


@dataclass(slots=True)
class _Open:
    """What is remembered of an open request."""

    sampling: SamplingParams
    prompt_tokens: int
    arrival_us: int
    cached_tokens: int | None = None  # None before it first runs
    cache_miss: wire.CacheMiss | None = None
    queue_us: int = 0
    retractions: int = 0
    announced: bool = False  # its first delta has left
    failed: str | None = None  # cancelled because of a fault, in words for the caller
    complete: bool = False  # cancelled because its grammar allows nothing more


class Binding(NamedTuple):
    """A slot's new tenant; the arguments of `Executor.bind`."""

    slot: int
    sampling: SamplingParams
    prompt: np.ndarray
    output: np.ndarray


class Desk:
    """Keeper of open requests in front of one scheduler. `stopped` turns true with `wire.Stop`."""

    def __init__(
        self, scheduler: Scheduler, *, vocab_size: int, constraints: Constraints | None = None
    ) -> None:
        """Without `constraints` a request that brings a grammar is refused."""
        self.stopped = False
        self._constraints = constraints
        self._compiling: dict[int, wire.Generate] = {}  # requests that wait for their grammar
        self._vocab_size = vocab_size
        self._scheduler = scheduler
        self._open: dict[int, _Open] = {}
        self._notes: list[wire.Report] = []
        self._prompt_tokens = 0
        self._prompt_tokens_cached = 0
        self._output_tokens = 0
        self._faults = 0
        self._deadlines_passed = 0

    def accept(self, message: wire.Request, now_us: int) -> None:
        """Act on one message from the front; what it must be told waits in `take_notes`."""
        match message:
            case wire.Generate():
                self._receive(message, now_us)
            case wire.Abort():
                left = [i for i in message.request_ids if not self._scheduler.cancel(i) and self._forget(i)]
                ends = [wire.Delta(request_id, b"", finish="cancelled") for request_id in left]
                self._notes.append(wire.Deltas(ends + self._deltas(self._scheduler.drain(), {}), 0))
            case wire.Flush():
                self._scheduler.flush_prefix()
            case wire.Rest():
                self._scheduler.idle_session(
                    message.session, _IDLE[message.idle], gap_key=message.gap_key, now_us=now_us
                )
            case wire.Close():
                self._scheduler.close_session(message.session, now_us)
            case wire.Ask():
                self._notes.append(wire.SessionReport(message.ticket, self._account(message.session)))
            case wire.Stop():
                self.stopped = True

    def admit(self, now_us: int) -> bool:
        """Submit the requests whose grammar is there; whether there were any."""
        if self._constraints is None or not self._compiling:
            return False
        ready = list(self._constraints.ready())
        for request_id, walk in ready:
            message = self._compiling.pop(request_id)
            if walk is None:
                self._notes.append(wire.Refused(request_id, "grammar"))
            elif self._submit(message, now_us):
                self._constraints.open(request_id, walk, message.sampling)
        return bool(ready)

    def take_notes(self) -> list[wire.Report]:
        """Reports that no step produces (refusals, cancels), once."""
        notes, self._notes = self._notes, []
        return notes

    def plan(self, now_us: int) -> Plan | None:
        """The next step, or None if nothing can run; notes when and with what its requests started."""
        plan = self._scheduler.plan(now_us)
        if plan is None:
            self._drain_expired()
            return None
        for request_id, cached, miss in zip(
            plan.bound_request_ids.tolist(),
            plan.cached_tokens.tolist(),
            plan.miss_reasons.tolist(),
            strict=True,
        ):
            request = self._open.get(request_id)
            if request is None:
                continue
            if request.cached_tokens is not None:
                request.retractions += 1
            else:
                request.cached_tokens = cached
                request.cache_miss = _MISS[miss]
                request.queue_us = now_us - request.arrival_us
                self._prompt_tokens += request.prompt_tokens
                self._prompt_tokens_cached += cached
        return plan

    def _drain_expired(self) -> None:
        """Where nothing runs, no step would tell of requests whose deadline has passed."""
        passed = self._scheduler.stats().deadlines_passed
        if passed > self._deadlines_passed:
            self._deadlines_passed = passed
            if items := self._deltas(self._scheduler.drain(), {}):
                self._notes.append(wire.Deltas(items, 0))

    def bindings(self, plan: Plan) -> Iterator[Binding]:
        """The slots `plan` gives to requests."""
        for slot, request_id in zip(plan.bound_slots.tolist(), plan.bound_request_ids.tolist(), strict=True):
            request = self._open[request_id]
            tokens = self._scheduler.tokens(request_id)
            yield Binding(
                slot, request.sampling, tokens[: request.prompt_tokens], tokens[request.prompt_tokens :]
            )

    def holds(self, plan: Plan) -> bool:
        """Whether tokens of the plan are chosen by masks, which `masks` makes once the step before is committed."""
        return self._constraints is not None and self._constraints.holds(plan)

    def masks(self, plan: Plan) -> RowMasks | None:
        """The masks of a plan's rows; ends the requests whose grammar allows nothing."""
        assert self._constraints is not None
        asked = self._constraints.ask(plan)
        for request_id, error in asked.failed:
            self._fail(request_id, error)
        for request_id in asked.ended:
            self._open[request_id].complete = True
            self._scheduler.cancel(request_id)
        return asked.masks

    def commit(self, plan: Plan, result: StepResult, now_us: int = 0) -> wire.Deltas:
        """Tell the scheduler what `plan` yielded and when, and say what that means to each request."""
        logprobs: dict[int, TokenLogprob | None] = {}
        if result.logprobs is not None:
            sampled_ids: list[int] = plan.request_ids[plan.sampled.view(np.bool_)].tolist()
            logprobs = dict(zip(sampled_ids, result.logprobs, strict=True))
        if result.corrupt:
            _log.error("KV blocks %s do not hold what was stored; they are recomputed", result.corrupt)
            self._scheduler.corrupt(np.array(result.corrupt, np.int32), now_us)
        for row in result.faults:
            self._fail(int(plan.request_ids[row]), _FAULT)
        outcome = self._scheduler.commit(result.step, result.tokens, now_us, result.device_us)
        return wire.Deltas(self._deltas(outcome, logprobs), result.step)

    def transferred(self, reports: Reports, now_us: int) -> None:
        """Tell the scheduler what became of copies between tiers."""
        self._scheduler.transferred(reports.copy_ids, reports.results, now_us)

    def sample(self, timeline: Timeline) -> CoreSample:
        """What the core says of itself now."""
        stats = self._scheduler.stats()
        return CoreSample(
            step=stats.steps,
            waiting=stats.waiting,
            running=stats.running,
            blocks_total=stats.blocks_total,
            blocks_free=stats.blocks_free,
            blocks_cached=stats.blocks_evictable,
            prompt_tokens=self._prompt_tokens,
            prompt_tokens_cached=self._prompt_tokens_cached,
            output_tokens=self._output_tokens,
            retractions=stats.retractions,
            faults=self._faults,
            step_us_sum=timeline.step_us_sum,
            step_us_counts=timeline.step_us_counts,
            phase_us_sums=timeline.phase_us_sums,
            blocks_leased=stats.blocks_leased,
            blocks_in_flight=stats.blocks_in_flight,
            cpu_us=time.process_time_ns() // 1000,
            at_door=stats.at_door,
            sessions_admitted=stats.sessions_admitted,
            deadlines_passed=stats.deadlines_passed,
            step_error_p99=self._scheduler.step_error_p99,
        )

    def _account(self, session: int) -> SessionAccount | None:
        found = self._scheduler.session(session)
        if found is None:
            return None
        device, host, disk = found.block_us
        return SessionAccount(
            admitted=found.admitted,
            requests=found.requests,
            requests_live=found.requests_live,
            prefill_ns=found.prefill_ns,
            decode_ns=found.decode_ns,
            queue_us=found.queue_us,
            tokens_prompt=found.tokens_prompt,
            tokens_cached=found.tokens_cached,
            tokens_computed=found.tokens_computed,
            tokens_output=found.tokens_output,
            block_us=(device, host, disk),
            block_tokens=self._scheduler.options.block_tokens,
        )

    def _receive(self, message: wire.Generate, now_us: int) -> None:
        """Submit a request, or have its grammar compiled first."""
        if message.constraint is None:
            self._submit(message, now_us)
        elif self._constraints is None:
            self._notes.append(wire.Refused(message.request_id, "grammar"))
        elif message.request_id in self._compiling:
            self._notes.append(wire.Refused(message.request_id, "duplicate"))
        else:
            self._compiling[message.request_id] = message
            self._constraints.begin(message.request_id, message.constraint)

    def _forget(self, request_id: int) -> bool:
        """Drop a request that waits for its grammar; whether it did."""
        if self._compiling.pop(request_id, None) is None:
            return False
        assert self._constraints is not None
        return self._constraints.close(request_id)

    def _submit(self, message: wire.Generate, now_us: int) -> bool:
        """Submit a request; whether it was accepted."""
        sampling = message.sampling
        if message.constraint is not None:
            # When a stop id may come is the grammar's to say, and what masks are made of.
            sampling = msgspec.structs.replace(sampling, tokens_min=0)
        try:
            tokens = wire.ids_array(message.ids)
            admission.check(
                tokens,
                sampling,
                vocab_size=self._vocab_size,
                context_tokens_max=self._scheduler.options.context_tokens_max,
            )
        except (msgspec.ValidationError, RequestError) as error:
            _log.warning("request %d refused: %s", message.request_id, error)
            self._notes.append(wire.Refused(message.request_id, "invalid"))
            return False
        status = self._scheduler.submit(
            message.request_id,
            tokens,
            tokens_max=sampling.tokens_max,
            tokens_min=sampling.tokens_min,
            stop_ids=np.array(sampling.stop_ids, dtype=np.int32),
            salt=message.salt,
            priority=message.priority,
            now_us=now_us,
            session=message.session,
            root=message.root,
            tenant=message.tenant,
            floor_mtps=message.floor_mtps,
            deadline_us=message.deadline_us,
            final=message.final,
            retain_us=message.retain_us,
        )
        if status is not SubmitStatus.ACCEPTED:
            retry_after_us = self._scheduler.retry_after_us() if status in _RETRIES else 0
            self._notes.append(wire.Refused(message.request_id, _REFUSAL[status], retry_after_us))
            return False
        self._open[message.request_id] = _Open(sampling, len(tokens), message.arrival_us)
        return True

    def _fail(self, request_id: int, error: str) -> None:
        """End a request: one whose prompt failed midway, before the commit would let others share its blocks."""
        request = self._open.get(request_id)
        if request is not None:
            request.failed = error
            self._scheduler.cancel(request_id)

    def _deltas(self, outcome: Outcome, logprobs: dict[int, TokenLogprob | None]) -> list[wire.Delta]:
        """What an outcome says to each request; closes those it ends."""
        items: list[wire.Delta] = []
        columns = (outcome.request_ids.tolist(), outcome.tokens.tolist(), outcome.finish.tolist())
        for request_id, token, finish in zip(*columns, strict=True):
            if finish == Finish.DEADLINE:
                del self._open[request_id]
                self._notes.append(wire.Refused(request_id, "deadline", self._scheduler.retry_after_us()))
                continue
            request = self._open[request_id]
            items.append(self._delta(request_id, request, token, finish, logprobs.get(request_id)))
            if self._constraints is not None:
                self._follow(self._constraints, request_id, token, ended=bool(finish))
            if finish:
                del self._open[request_id]
        return items

    def _follow(self, constraints: Constraints, request_id: int, token: int, *, ended: bool) -> None:
        """Lead a request's grammar along its answer; one that does not have the token says so when next asked."""
        if ended:
            constraints.close(request_id)
        elif token >= 0:
            constraints.take(request_id, token)

    def _delta(
        self, request_id: int, request: _Open, token: int, finish: int, logprob: TokenLogprob | None
    ) -> wire.Delta:
        cached = queue_us = error = cache_miss = None
        if not request.announced and request.cached_tokens is not None:
            request.announced = True
            cached, queue_us = request.cached_tokens, request.queue_us
            cache_miss = request.cache_miss
        if request.complete and finish:
            finish = Finish.STOP
        elif request.failed or finish == Finish.ERROR:
            finish = Finish.ERROR
            error = request.failed or _FAULT
            self._faults += 1
            _log.error("request %d ends: %s", request_id, error)
        ids, chosen = b"", None
        if token >= 0 and not (request.complete or request.failed):
            self._output_tokens += 1
            ids = token.to_bytes(4, "little")
            chosen = None if logprob is None else [logprob]
        retractions = request.retractions
        return wire.Delta(
            request_id, ids, chosen, _FINISH[finish], cached, error, queue_us, retractions, cache_miss
        )
