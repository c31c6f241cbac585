# SPDX-License-Identifier: MIT
"""Agents on the real control plane: recorded sessions in a closed loop, steps that last what a formula says.

    lanes (closed loops of sessions) -> Scheduler (C++) -> plan -> DeviceModel -> commit -> lanes

In: sessions, scheduler options, a device model, a `Setting`. Out: a `Record`: every turn with its times, every
token with its moment. A lane plays one session after another; a turn is sent when the answer before it was
complete and the recorded gap has passed. The first session of a lane starts at a random call, so that the
population is old from the beginning. The clock moves by steps and waits only; the order of plan, launch and
commit is that of `engine.loop`, with and without overlap.

Answers are the recorded ones: a sampled token is what the session's stream has at that place, the last one is a
stop token, so the scheduler knows an answer's length no sooner than an engine would. No text, no tensors; KV
itself is not simulated (`world` does that), its bookkeeping is the product's own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.base.errors import SetupError
from tokenspeed.control import (
    CopyResult,
    Finish,
    IdleClass,
    Outcome,
    Plan,
    Scheduler,
    SchedulerOptions,
    SubmitStatus,
    Tier,
)
from tokenspeed.sim.device import DeviceModel, Noise, Step
from tokenspeed.sim.sessions import CHAIN_TOKENS, Call, Session

STOP: Final = 2**31 - 1
POLL_US: Final = 250_000
"""How long the loop sleeps at most while a request is open and nothing runs."""
RETRY_US: Final = 1_000_000
LANES_APART: Final = 64
"""A lane plays every 64th session of the order, the same ones however many other lanes there are."""
STAGGER_US: Final = 20_000_000
"""Lanes begin within this time."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is played. A lane belongs to tenant `tenants[lane]`; With `final` a
    session says which turn is its last, with `closes` it says so afterwards."""

    seed: int
    lanes: int
    duration_us: int
    warm_up_us: int
    noise: Noise
    tokens_max: int = 32_768
    final: bool = False
    closes: bool = False
    tenants: tuple[int, ...] = ()


@dataclass(slots=True)
class Turn:
    """One request as it fared; times are None while they have not come."""

    request_id: int
    lane: int
    session: int
    session_index: int  # of the recorded session
    round_: int  # how often all sessions were played before
    number: int
    first: bool  # of its session, as played
    input_tokens: int
    new_tokens: int  # since the turn before it, of the same session as played
    output_tokens: int
    submit_us: int
    bound_us: int | None = None
    cached_tokens: int = 0
    first_token_us: int | None = None
    end_us: int | None = None
    retractions: int = 0


@dataclass(slots=True)
class Record:
    """What happened. `token_ids` and `token_us` are parallel: which request got a token, and when."""

    setting: Setting
    turns: list[Turn] = field(default_factory=list)
    token_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    token_us: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    end_us: int = 0
    steps: int = 0
    busy_us: int = 0
    prefill_tokens: int = 0  # computed after the warm-up
    refusals: int = 0
    sessions_ended: int = 0
    evictions: int = 0
    copies: int = 0  # of blocks, between tiers


@dataclass(slots=True)
class _Lane:
    """A closed loop: where it is in the session it plays."""

    index: int
    random: Random
    session_id: int = 0
    session_index: int = 0
    call: int = 0
    round_: int = 0  # a session that comes round again has other tokens
    played: int = 0
    begun: int = 0  # sessions, ever
    before: int = 0  # tokens of the turn before, answer included


@dataclass(frozen=True, slots=True)
class _Running:
    step: int
    end_us: int
    step_us: int
    tokens: NDArray[np.int32]


class Agents:
    """One run; `play` lives through it."""

    def __init__(
        self,
        sessions: Sequence[Session],
        options: SchedulerOptions,
        device: DeviceModel,
        setting: Setting,
    ) -> None:
        self.scheduler = Scheduler(options)
        self.record = Record(setting)
        self._sessions = sessions
        self._options = options
        self._device = device
        self._setting = setting
        self._copied_us = [0, 0]  # when the link up, and down, is free
        self._noise_random = Random(f"{setting.seed}/noise")
        self._order = list(range(len(sessions)))
        Random(f"{setting.seed}/order").shuffle(self._order)
        self._begun = 0
        self._apart = max(LANES_APART, setting.lanes)
        self._now_us = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._posted = 0
        self._lanes = [_Lane(i, Random(f"{setting.seed}/lane/{i}")) for i in range(setting.lanes)]
        self._calls: dict[int, tuple[_Lane, Call]] = {}
        self._emitted = np.zeros(1 << 12, np.int64)
        self._moments: list[tuple[int, NDArray[np.uint64]]] = []
        # by slot: names of the blocks of its stream, the next position to sample, the last one, the name offset
        self._base: list[int] = []
        base = 0
        for session in sessions:
            self._base.append(base)
            base += len(session.chain)
        self._flat = np.concatenate([session.chain for session in sessions])
        self._names = 1 + int(self._flat.max())  # of one round
        self._slot_base = np.zeros(options.slots_max, np.int64)
        self._slot_next = np.zeros(options.slots_max, np.int64)
        self._slot_last = np.zeros(options.slots_max, np.int64)
        self._slot_offset = np.zeros(options.slots_max, np.int64)

    def play(self) -> Record:
        """Run until the time is over; what is open then stays open in the record."""
        for lane in self._lanes:
            at_us = int(lane.random.random() * STAGGER_US)
            self._post(at_us, lambda lane=lane: self._begin(lane, at_random=True))
        running: _Running | None = None
        while self._now_us < self._setting.duration_us:
            self._hear()
            launched = self._launch(running)
            if not self._options.overlap:
                launched, running = None, launched
            if running is not None:
                self._retire(running)
            elif launched is None:
                self._sleep()
            running = launched
        return self._finish()

    def _hear(self) -> None:
        while self._due and self._due[0][0] <= self._now_us:
            heapq.heappop(self._due)[2]()

    def _sleep(self) -> None:
        """Nothing runs: wait for the next turn, or for the loop's next look if a request is open."""
        nearest = self._due[0][0] if self._due else self._setting.duration_us
        if not self.scheduler.idle:
            nearest = min(nearest, self._now_us + POLL_US)
        self._now_us = max(self._now_us + 1, nearest)

    def _post(self, at_us: int, act: Callable[[], None]) -> None:
        self._posted += 1
        heapq.heappush(self._due, (at_us, self._posted, act))

    # --- lanes

    def _begin(self, lane: _Lane, *, at_random: bool = False) -> None:
        """Play the next session from its beginning, or from somewhere."""
        lane.round_, place = divmod(lane.index + lane.begun * self._apart, len(self._order))
        lane.begun += 1
        self._begun += 1
        lane.session_id = self._begun
        lane.session_index = self._order[place]
        calls = len(self._sessions[lane.session_index].calls)
        lane.call = lane.random.randrange(calls) if at_random else 0
        lane.played = lane.before = 0
        self._submit(lane)

    def _submit(self, lane: _Lane) -> None:
        session = self._sessions[lane.session_index]
        call = session.calls[lane.call]
        request_id = len(self.record.turns)
        tokens = self._tokens(lane, call.input_tokens)
        tokens_max = min(self._setting.tokens_max, self._options.context_tokens_max - call.input_tokens)
        status = self.scheduler.submit(
            request_id,
            tokens,
            tokens_max=max(tokens_max, call.output_tokens),
            stop_ids=np.array([STOP], np.int32),
            now_us=self._now_us,
            session=lane.session_id,
            tenant=self._tenant(lane),
            final=self._setting.final and lane.call + 1 == len(session.calls),
        )
        if status == SubmitStatus.QUEUE_FULL:
            self.record.refusals += 1
            self._post(self._now_us + RETRY_US, lambda: self._submit(lane))
            return
        if status != SubmitStatus.ACCEPTED:
            self.record.refusals += 1  # a session that outgrew the pool or the context ends here
            self._post(self._now_us + RETRY_US, lambda: self._begin(lane))
            return
        turn = Turn(
            request_id=request_id,
            lane=lane.index,
            session=lane.session_id,
            session_index=lane.session_index,
            round_=lane.round_,
            number=lane.call,
            first=lane.played == 0,
            input_tokens=call.input_tokens,
            new_tokens=call.input_tokens - lane.before,
            output_tokens=call.output_tokens,
            submit_us=self._now_us,
        )
        self.record.turns.append(turn)
        self._calls[request_id] = (lane, call)
        lane.before = call.input_tokens + call.output_tokens
        lane.played += 1
        if request_id >= len(self._emitted):
            self._emitted = np.concatenate([self._emitted, np.zeros_like(self._emitted)])

    def _tenant(self, lane: _Lane) -> int:
        return self._setting.tenants[lane.index] if self._setting.tenants else 0

    def _tokens(self, lane: _Lane, count: int) -> NDArray[np.int32]:
        chain = (
            self._sessions[lane.session_index].chain[: -(-count // CHAIN_TOKENS)] + lane.round_ * self._names
        )
        whole = (chain[:, None] * CHAIN_TOKENS + np.arange(CHAIN_TOKENS)).astype(np.int32)
        return whole.reshape(-1)[:count]

    def _ended(self, turn: Turn) -> None:
        lane, _ = self._calls.pop(turn.request_id)
        calls = self._sessions[lane.session_index].calls
        lane.call += 1
        if lane.call == len(calls):
            self.record.sessions_ended += 1
            if self._setting.closes:
                self.scheduler.close_session(lane.session_id, self._now_us)
            self._begin(lane)
            return
        idle = IdleClass.TURN if calls[lane.call].human else IdleClass.TOOL
        self.scheduler.idle_session(
            lane.session_id, idle, gap_key=calls[lane.call].gap_key, now_us=self._now_us
        )
        self._post(self._now_us + calls[lane.call].gap_us, lambda: self._submit(lane))

    # --- steps

    def _launch(self, running: _Running | None) -> _Running | None:
        plan = self.scheduler.plan(self._now_us)
        if plan is None:
            return None
        self._copy(plan)
        self._bind(plan)
        step_us = 0
        if plan.rows:  # else it holds copies alone, and nothing is launched
            exact_us = self._device.step_us(Step(*plan.work))
            step_us = self._setting.noise.apply(exact_us, self._noise_random)
        start_us = self._now_us + round(self._device.host_us)
        if running is not None:
            start_us = max(start_us, running.end_us)
        self.record.steps += 1
        if self._now_us >= self._setting.warm_up_us:
            self.record.busy_us += step_us
            self.record.prefill_tokens += len(plan.tokens) - plan.decode_rows
        return _Running(plan.step, start_us + step_us, step_us, self._sample(plan))

    def _copy(self, plan: Plan) -> None:
        """Move blocks between tiers beside the step: one at a time each way, all of them well."""
        copies = len(plan.copy_ids)
        if copies == 0:
            return
        self.record.copies += copies
        up = plan.copy_to_tiers == int(Tier.DEVICE)
        block_us = self._device.copy_us * self._options.block_tokens
        for way, ids in ((0, plan.copy_ids[up]), (1, plan.copy_ids[~up])):
            if len(ids) == 0:
                continue
            free_us = max(self._copied_us[way], self._now_us) + round(block_us * len(ids))
            self._copied_us[way] = free_us
            mine = ids.copy()
            self._post(free_us, lambda mine=mine: self._copied(mine))

    def _copied(self, ids: NDArray[np.uint64]) -> None:
        done = np.full(len(ids), int(CopyResult.DONE), np.uint8)
        self.scheduler.transferred(ids, done, self._now_us)

    def _bind(self, plan: Plan) -> None:
        bound = zip(
            plan.bound_slots.tolist(),
            plan.bound_request_ids.tolist(),
            plan.cached_tokens.tolist(),
            strict=True,
        )
        for slot, request_id, cached in bound:
            turn = self.record.turns[request_id]
            if turn.bound_us is None:
                turn.bound_us = self._now_us
                turn.cached_tokens = cached
            else:
                turn.retractions += 1
            lane, _ = self._calls[request_id]
            self._slot_base[slot] = self._base[turn.session_index]
            self._slot_next[slot] = turn.input_tokens + self._emitted[request_id]
            self._slot_last[slot] = turn.input_tokens + turn.output_tokens - 1
            self._slot_offset[slot] = lane.round_ * self._names

    def _sample(self, plan: Plan) -> NDArray[np.int32]:
        """What the model says in each sampled row: the next token of its stream, or the end."""
        slots = plan.slots[plan.sampled.view(np.bool_)]
        at = self._slot_next[slots]
        self._slot_next[slots] += 1
        last = self._slot_last[slots]
        names = self._flat[self._slot_base[slots] + np.minimum(at, last) // CHAIN_TOKENS]
        tokens = (names + self._slot_offset[slots]) * CHAIN_TOKENS + at % CHAIN_TOKENS
        return np.where(at < last, tokens, STOP).astype(np.int32)

    def _retire(self, running: _Running) -> None:
        self._now_us = max(self._now_us, running.end_us)
        self._take(self.scheduler.commit(running.step, running.tokens, self._now_us, running.step_us))

    def _take(self, outcome: Outcome) -> None:
        ids = outcome.request_ids
        if len(ids) == 0:
            return
        said = ids[outcome.tokens >= 0]
        self._emitted[said] += 1
        self._moments.append((self._now_us, said))
        finish = outcome.finish
        if not finish.any():
            return
        for request_id, reason in zip(ids.tolist(), finish.tolist(), strict=True):
            if reason:
                if reason != Finish.STOP:
                    raise SetupError(f"request {request_id} of the simulation ended by {Finish(reason).name}")
                turn = self.record.turns[request_id]
                turn.end_us = self._now_us
                self._ended(turn)

    def _finish(self) -> Record:
        record = self.record
        record.end_us = self._now_us
        record.evictions = self.scheduler.stats().evictions
        if self._moments:
            record.token_ids = np.concatenate([ids for _, ids in self._moments]).astype(np.int64)
            counts = [len(ids) for _, ids in self._moments]
            record.token_us = np.repeat(np.array([at for at, _ in self._moments], np.int64), counts)
        firsts, places = np.unique(record.token_ids, return_index=True)
        for request_id, place in zip(firsts.tolist(), places.tolist(), strict=True):
            record.turns[request_id].first_token_us = int(record.token_us[place])
        return record
