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
from tokenspeed.control import Finish, Outcome, Plan, Scheduler, SubmitStatus
from tokenspeed.engine import admission, wire
from tokenspeed.exec.protocol import StepResult
from tokenspeed.obs.sample import CoreSample
from tokenspeed.obs.timeline import Timeline

_log = get_logger("engine")
_FINISH: Final[dict[int, wire.Finish | None]] = {0: None, 1: "stop", 2: "length", 3: "cancelled", 4: "error"}
_REFUSAL: Final[dict[SubmitStatus, wire.Refusal]] = {
    SubmitStatus.QUEUE_FULL: "queue_full",
    SubmitStatus.TOO_LONG: "too_long",
    SubmitStatus.EXCEEDS_POOL: "exceeds_pool",
    SubmitStatus.DUPLICATE: "duplicate",
    SubmitStatus.EMPTY: "empty",
}
_FAULT: Final = "the model produced values that are not finite; this request was ended, others go on"


@dataclass(slots=True)
class _Open:
    """What is remembered of an open request."""

    sampling: SamplingParams
    prompt_tokens: int
    arrival_us: int
    cached_tokens: int | None = None  # None before it first runs
    queue_us: int = 0
    retractions: int = 0
    announced: bool = False  # its first delta has left
    failed: bool = False  # cancelled because of a fault


class Binding(NamedTuple):
    """A slot's new tenant; the arguments of `Executor.bind`."""

    slot: int
    sampling: SamplingParams
    prompt: np.ndarray
    output: np.ndarray


class Desk:
    """Keeper of open requests in front of one scheduler. `stopped` turns true with `wire.Stop`."""

    def __init__(self, scheduler: Scheduler, *, vocab_size: int) -> None:
        self.stopped = False
        self._vocab_size = vocab_size
        self._scheduler = scheduler
        self._open: dict[int, _Open] = {}
        self._notes: list[wire.Report] = []
        self._prompt_tokens = 0
        self._prompt_tokens_cached = 0
        self._output_tokens = 0
        self._faults = 0

    def accept(self, message: wire.Request, now_us: int) -> None:
        """Act on one message from the front; what it must be told waits in `take_notes`."""
        match message:
            case wire.Generate():
                self._submit(message, now_us)
            case wire.Abort():
                for request_id in message.request_ids:
                    self._scheduler.cancel(request_id)
                self._notes.append(wire.Deltas(self._deltas(self._scheduler.drain(), {}), 0))
            case wire.Flush():
                self._scheduler.flush_prefix()
            case wire.Stop():
                self.stopped = True

    def take_notes(self) -> list[wire.Report]:
        """Reports that no step produces (refusals, cancels), once."""
        notes, self._notes = self._notes, []
        return notes

    def plan(self, now_us: int) -> Plan | None:
        """The next step, or None if nothing can run; notes when and with what its requests started."""
        plan = self._scheduler.plan(now_us)
        if plan is None:
            return None
        for request_id, cached in zip(
            plan.bound_request_ids.tolist(), plan.cached_tokens.tolist(), strict=True
        ):
            request = self._open.get(request_id)
            if request is None:
                continue
            if request.cached_tokens is not None:
                request.retractions += 1
            else:
                request.cached_tokens = cached
                request.queue_us = now_us - request.arrival_us
                self._prompt_tokens += request.prompt_tokens
                self._prompt_tokens_cached += cached
        return plan

    def bindings(self, plan: Plan) -> Iterator[Binding]:
        """The slots `plan` gives to requests."""
        for slot, request_id in zip(plan.bound_slots.tolist(), plan.bound_request_ids.tolist(), strict=True):
            request = self._open[request_id]
            tokens = self._scheduler.tokens(request_id)
            yield Binding(
                slot, request.sampling, tokens[: request.prompt_tokens], tokens[request.prompt_tokens :]
            )

    def commit(self, plan: Plan, result: StepResult, now_us: int = 0) -> wire.Deltas:
        """Tell the scheduler what `plan` yielded and when, and say what that means to each request."""
        logprobs: dict[int, TokenLogprob | None] = {}
        if result.logprobs is not None:
            sampled_ids: list[int] = plan.request_ids[plan.sampled.view(np.bool_)].tolist()
            logprobs = dict(zip(sampled_ids, result.logprobs, strict=True))
        for row in result.faults:
            self._fail(int(plan.request_ids[row]))
        outcome = self._scheduler.commit(result.step, result.tokens, now_us, result.device_us)
        return wire.Deltas(self._deltas(outcome, logprobs), result.step)

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
        )

    def _submit(self, message: wire.Generate, now_us: int) -> None:
        sampling = message.sampling
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
            return
        status = self._scheduler.submit(
            message.request_id,
            tokens,
            tokens_max=sampling.tokens_max,
            tokens_min=sampling.tokens_min,
            stop_ids=np.array(sampling.stop_ids, dtype=np.int32),
            salt=message.salt,
            priority=message.priority,
            now_us=now_us,
        )
        if status is not SubmitStatus.ACCEPTED:
            self._notes.append(wire.Refused(message.request_id, _REFUSAL[status]))
            return
        self._open[message.request_id] = _Open(sampling, len(tokens), message.arrival_us)

    def _fail(self, request_id: int) -> None:
        """End a request whose prompt failed midway, before the commit would let others share its blocks."""
        request = self._open.get(request_id)
        if request is not None:
            request.failed = True
            self._scheduler.cancel(request_id)

    def _deltas(self, outcome: Outcome, logprobs: dict[int, TokenLogprob | None]) -> list[wire.Delta]:
        """What an outcome says to each request; closes those it ends."""
        items: list[wire.Delta] = []
        columns = (outcome.request_ids.tolist(), outcome.tokens.tolist(), outcome.finish.tolist())
        for request_id, token, finish in zip(*columns, strict=True):
            request = self._open[request_id]
            items.append(self._delta(request_id, request, token, finish, logprobs.get(request_id)))
            if finish:
                del self._open[request_id]
        return items

    def _delta(
        self, request_id: int, request: _Open, token: int, finish: int, logprob: TokenLogprob | None
    ) -> wire.Delta:
        cached = queue_us = error = None
        if not request.announced and request.cached_tokens is not None:
            request.announced = True
            cached, queue_us = request.cached_tokens, request.queue_us
        if request.failed or finish == Finish.ERROR:
            finish = Finish.ERROR
            error = _FAULT
            self._faults += 1
            _log.error("request %d ends: its logits or KV are not finite", request_id)
        ids, chosen = b"", None
        if token >= 0:
            self._output_tokens += 1
            ids = token.to_bytes(4, "little")
            chosen = None if logprob is None else [logprob]
        retractions = request.retractions
        return wire.Delta(request_id, ids, chosen, _FINISH[finish], cached, error, queue_us, retractions)
