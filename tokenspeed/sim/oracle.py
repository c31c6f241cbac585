# SPDX-License-Identifier: MIT
"""What every request must say and how it must end, known without the control plane.

In: requests before they are sent, then what is heard of them. Out: nothing, or a `ViolationError`.
The answer of a request is that of a lone run without a cache: `model.complete` on its own history, cut at
the first stop id that counts or at `tokens_max`. Batching, chunking, overlap, prefix hits, retraction and
other requests must not show in it.

Each listener has its own `Oracle` over the same expectations: one hears the control plane's outcomes, one
hears what reaches the clients. Keeps I8: an accepted request is closed exactly once, with the right reason,
and then silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tokenspeed.sim import model
from tokenspeed.sim.violation import ViolationError


@dataclass(frozen=True, slots=True)
class Expectation:
    """A request, what it would answer alone, and how that ends."""

    request_id: int
    salt: bytes
    prompt: tuple[int, ...]
    tokens_max: int
    answer: tuple[int, ...]
    finish: str
    stop_ids: tuple[int, ...]

    @staticmethod
    def of(
        request_id: int,
        salt: bytes,
        prompt: tuple[int, ...],
        seed: int,
        *,
        tokens_max: int,
        tokens_min: int,
        stop_after: int | None,
    ) -> Expectation:
        """Run the request alone; its stop id is the token at index `stop_after` of the unstopped answer."""
        answer = tuple(model.complete(model.fold(model.root(salt), prompt)[-1], seed, tokens_max))
        stop_ids = () if stop_after is None else (answer[stop_after],)
        finish = "length"
        for count, token in enumerate(answer, start=1):
            if token in stop_ids and count >= tokens_min:
                answer, finish = answer[:count], "stop"
                break
        return Expectation(request_id, salt, prompt, tokens_max, answer, finish, stop_ids)


class Leaving(Enum):
    """Whether a request may, or must, end as cancelled or failed."""

    NO = 0
    MAY = 1
    MUST = 2


@dataclass(slots=True)
class Account:
    """How far a listener has heard an accepted request."""

    expectation: Expectation
    emitted: int = 0
    leaving: Leaving = Leaving.NO
    leaving_as: str = ""

    @property
    def history(self) -> tuple[int, ...]:
        """Prompt and answer as heard so far."""
        return self.expectation.prompt + self.expectation.answer[: self.emitted]


class Oracle:
    """What one listener hears; `live` are the accounts of open requests by id, oldest first."""

    def __init__(self, listener: str) -> None:
        self.live: dict[int, Account] = {}
        self.closed: dict[int, str] = {}
        self._listener = listener

    def accept(self, expectation: Expectation) -> None:
        """The request is in the engine."""
        request_id = expectation.request_id
        if request_id in self.live or request_id in self.closed:
            raise ViolationError("I8", f"{self._who(request_id)} accepted twice")
        self.live[request_id] = Account(expectation)

    def leave(self, request_id: int, finish: str, *, must: bool) -> None:
        """The live request may (or must, and then without another token) end with `finish` instead of its
        own end."""
        account = self.live[request_id]
        account.leaving = Leaving.MUST if must else Leaving.MAY
        account.leaving_as = finish

    def stay(self, request_id: int) -> None:
        """The request goes on after all."""
        account = self.live[request_id]
        account.leaving, account.leaving_as = Leaving.NO, ""

    def hear(self, request_id: int, tokens: list[int], finish: str | None) -> Account:
        """The request said `tokens`, and ended if `finish` is set."""
        account = self.live.get(request_id)
        if account is None:
            state = self.closed.get(request_id, "never accepted")
            raise ViolationError(
                "I8", f"{self._who(request_id)}: {tokens}, finish {finish}, but it was {state}"
            )
        expectation = account.expectation
        at = account.emitted
        expected = list(expectation.answer[at : at + len(tokens)])
        if tokens != expected:
            raise ViolationError(
                "tokens", f"{self._who(request_id)}: {tokens} at {at}, alone it says {expected}"
            )
        account.emitted += len(tokens)
        self._check_finish(account, tokens, finish)
        if finish is not None:
            del self.live[request_id]
            self.closed[request_id] = finish
        return account

    def close(self) -> None:
        """The world has come to rest: nothing may be open."""
        if self.live:
            raise ViolationError("I8", f"{self._listener}: requests {sorted(self.live)} never ended")

    def _check_finish(self, account: Account, tokens: list[int], finish: str | None) -> None:
        if finish is not None and finish == account.leaving_as and not tokens:
            return
        expectation = account.expectation
        who = self._who(expectation.request_id)
        if account.leaving is Leaving.MUST:
            raise ViolationError(
                "I8", f"{who}: {tokens}, finish {finish}, but it must end as {account.leaving_as}"
            )
        complete = account.emitted == len(expectation.answer)
        if finish != (expectation.finish if complete else None) or not tokens:
            raise ViolationError(
                "I8",
                f"{who}: finish {finish} at {account.emitted} tokens, "
                f"alone it ends with {expectation.finish} at {len(expectation.answer)}",
            )

    def _who(self, request_id: int) -> str:
        return f"{self._listener} hears of request {request_id}"
