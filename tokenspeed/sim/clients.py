# SPDX-License-Identifier: MIT
"""The clients of a world: both ends of the loop's wire, and the only source of what happens next.

In: a `Scenario`, and reports from the loop. Out: wire messages when they are due. A session sends a turn
when the one it continues has ended, with the history it has seen; it leaves when its script says so.
`drain` moves the clock when the engine has nothing to do; when nobody has anything left to say it sends one
last request (the engine must still serve, and must now deliver what it held back) and then `Stop`.

Keeps an `Oracle` of what clients hear, and fails the seed (I10) where the engine sleeps while a request is
open.
"""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.engine import wire
from tokenspeed.sim.oracle import Expectation, Oracle
from tokenspeed.sim.trace import Trace
from tokenspeed.sim.violation import ViolationError
from tokenspeed.sim.workload import Scenario, Session, Turn

TURNS_MAX: Final = 100  # request id = session index * TURNS_MAX + turn index + 1
PROBE: Final = Turn(
    parent=None,
    gap_us=0,
    tokens=(1,),
    tokens_max=1,
    tokens_min=0,
    stop_after=None,
    seed=0,
    priority=0,
    cancel_after_us=None,
    cancel_after_tokens=None,
)


class Clients:
    """Mailbox and outbox of one simulated loop. `expectations` holds every request sent, by id."""

    def __init__(self, scenario: Scenario, clock: FakeClock, trace: Trace) -> None:
        self.expectations: dict[int, Expectation] = {}
        self.oracle = Oracle("a client")
        self._clock = clock
        self._trace = trace
        self._sessions = {session.index: session for session in scenario.sessions}
        self._due: list[tuple[int, int, wire.Request]] = []
        self._posted = 0
        self._probed = False
        for at_us in scenario.flushes_us:
            self._post(at_us, wire.Flush())
        for session in scenario.sessions:
            self._continue(session, None, ())

    def drain(self, *, wait: bool) -> list[wire.Request]:
        """What is due now; with `wait`, what is due next."""
        if wait:
            if self.oracle.live:
                raise ViolationError(
                    "I10", f"nothing runs and nothing is planned, but {sorted(self.oracle.live)} are open"
                )
            if not self._due:
                self._end()
            self._clock.advance_us(max(0, self._due[0][0] - self._clock.now_us()))
        messages: list[wire.Request] = []
        while self._due and self._due[0][0] <= self._clock.now_us():
            message = heapq.heappop(self._due)[2]
            self._sent(message)
            messages.append(message)
        return messages

    def send(self, report: wire.Report) -> None:
        """Hear a report of the loop."""
        match report:
            case wire.Deltas():
                for delta in report.items:
                    self._hear(delta)
            case wire.Refused():
                self._refused(report)
            case wire.Stats():
                pass
            case _:
                raise ViolationError("crash", f"the loop said {report}")

    def origin_of(self, request_id: int) -> tuple[bytes, int]:
        """Salt and number of prompt tokens of a request."""
        expectation = self.expectations[request_id]
        return expectation.salt, len(expectation.prompt)

    def fault(self, request_id: int) -> None:
        """A row of the request was not finite: it may end with an error (must, unless it was sent back
        meanwhile)."""
        if request_id in self.oracle.live:
            self.oracle.leave(request_id, "error", must=False)

    def _end(self) -> None:
        if self._probed:
            self._post(self._clock.now_us(), wire.Stop())
            return
        self._probed = True
        index = max(self._sessions, default=0) + 1
        self._sessions[index] = Session(index, b"probe", (PROBE,))
        self._continue(self._sessions[index], None, ())

    def _post(self, at_us: int, message: wire.Request) -> None:
        """Send at a time; what is due at one time leaves in the order it was posted."""
        self._posted += 1
        heapq.heappush(self._due, (at_us, self._posted, message))

    def _continue(self, session: Session, parent: int | None, history: tuple[int, ...]) -> None:
        """Send the turns that follow `parent`."""
        for number, turn in enumerate(session.turns):
            if turn.parent == parent:
                self._generate(session, number, turn, history + turn.tokens)

    def _generate(self, session: Session, number: int, turn: Turn, prompt: tuple[int, ...]) -> None:
        request_id = session.index * TURNS_MAX + number + 1
        expectation = Expectation.of(
            request_id,
            session.salt,
            prompt,
            turn.seed,
            tokens_max=turn.tokens_max,
            tokens_min=turn.tokens_min,
            stop_after=turn.stop_after,
        )
        self.expectations[request_id] = expectation
        sampling = SamplingParams(
            seed=turn.seed,
            tokens_max=turn.tokens_max,
            tokens_min=turn.tokens_min,
            stop_ids=expectation.stop_ids,
        )
        at_us = self._clock.now_us() + turn.gap_us
        ids = wire.ids_bytes(np.array(prompt, dtype=np.int32))
        self._post(at_us, wire.Generate(request_id, ids, sampling, session.salt, turn.priority, 0, at_us))
        if turn.cancel_after_us is not None:
            self._post(at_us + turn.cancel_after_us, wire.Abort([request_id]))
        if turn.cancel_after_tokens == 0:
            self._post(at_us, wire.Abort([request_id]))

    def _sent(self, message: wire.Request) -> None:
        match message:
            case wire.Generate():
                # A refusal takes it out again: whether one is right is the witness's question.
                self.oracle.accept(self.expectations[message.request_id])
                self._trace.reached["requests"] += 1
            case wire.Abort():
                for request_id in message.request_ids:
                    self._trace.note("client leaves request {}", request_id)
                    if request_id in self.oracle.live:
                        self.oracle.leave(request_id, "cancelled", must=False)
            case wire.Flush():
                self._trace.note("flush")
            case wire.Rest() | wire.Close() | wire.Ask():
                pass  # of sessions and accounts, which the oracle does not judge
            case wire.Stop():
                self.oracle.close()

    def _hear(self, delta: wire.Delta) -> None:
        tokens = wire.ids_array(delta.ids).tolist()
        account = self.oracle.hear(delta.request_id, tokens, delta.finish)
        self._check_cached(delta, len(account.expectation.prompt), account.emitted - len(tokens))
        session, turn = self._turn(delta.request_id)
        if delta.finish is not None:
            self._trace.reached[f"ended by {delta.finish}"] += 1
            self._continue(session, self._number(delta.request_id), account.history)
        elif turn.cancel_after_tokens is not None and account.emitted >= turn.cancel_after_tokens > 0:
            self._post(self._clock.now_us(), wire.Abort([delta.request_id]))

    def _check_cached(self, delta: wire.Delta, prompt_tokens: int, emitted_before: int) -> None:
        cached = delta.cached_tokens
        if cached is not None and not 0 <= cached < prompt_tokens:
            raise ViolationError(
                "cache", f"request {delta.request_id}: {cached} of {prompt_tokens} prompt tokens cached"
            )
        if len(delta.ids) > 0 and (cached is None) == (emitted_before == 0):
            raise ViolationError(
                "cache", f"request {delta.request_id}: cached_tokens is {cached} at {emitted_before} tokens"
            )

    def _refused(self, report: wire.Refused) -> None:
        account = self.oracle.live.pop(report.request_id, None)
        if account is None:
            raise ViolationError(
                "I8", f"request {report.request_id} refused ({report.reason}), but it is not open"
            )
        self.oracle.closed[report.request_id] = "refused"
        self._trace.reached[f"refused, {report.reason}"] += 1
        self._continue(
            self._turn(report.request_id)[0], self._number(report.request_id), account.expectation.prompt
        )

    def _turn(self, request_id: int) -> tuple[Session, Turn]:
        session = self._sessions[(request_id - 1) // TURNS_MAX]
        return session, session.turns[self._number(request_id)]

    def _number(self, request_id: int) -> int:
        return (request_id - 1) % TURNS_MAX
