# SPDX-License-Identifier: MIT
"""What happened to each recent request, from its arrival to its end.

In: events of the front, each with its time. Out: one `RequestTimeline` a request, all that are open and the
last that ended. Holds ids, counts, times and a keyed hash of the session's name: no text, no tokens, no name
that a client gave, save the `traceparent` of those who trace. Times are integers of one monotonic clock, in
microseconds, so sums are exact.

Law: the gaps between a request's tokens sum to its last token's time minus its first's; of an answer that was
finished the last token ends it, so they sum to end-to-end time minus time to first token.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

TOKEN_TIMES_MAX: Final = 4096
"""Times kept of one request, of its first tokens; the count and the last time go on."""
ENDED_MAX: Final = 512
"""Ended requests kept."""
_HASH_BYTES: Final = 6


def _times() -> array[int]:
    return array("q")


@dataclass(slots=True)
class RequestTimeline:
    """One request; -1 is a time that has not come."""

    request_id: int
    prompt_tokens: int
    received_us: int
    """Its body began to arrive."""
    queued_us: int
    """It was checked, tokenised and handed to the core."""
    answer_id: str = ""
    """The id in the API's answer, shared by its choices."""
    session: str | None = None
    """A hash of the session's name."""
    traceparent: str | None = None
    """The trace it came within, as W3C spells it."""
    first_step_us: int = -1
    cached_tokens: int = 0
    """Prompt tokens whose KV was reused."""
    retractions: int = 0
    """Times it was sent back because blocks ran out, and resumed."""
    output_tokens: int = 0
    first_token_us: int = -1
    last_token_us: int = -1
    token_us: array[int] = field(default_factory=_times)
    end_us: int = -1
    finish: str | None = None

    def note_first_step(self, step_us: int, cached_tokens: int) -> None:
        self.first_step_us = step_us
        self.cached_tokens = cached_tokens

    def note_tokens(self, count: int, now_us: int) -> int:
        """Note tokens that came at once; return the time since the one before, or since arrival."""
        since_us = now_us - (self.last_token_us if self.output_tokens else self.received_us)
        if not self.output_tokens:
            self.first_token_us = now_us
        self.last_token_us = now_us
        self.output_tokens += count
        kept = min(count, TOKEN_TIMES_MAX - len(self.token_us))
        self.token_us.extend([now_us] * kept)
        return since_us

    def note_end(self, finish: str, now_us: int) -> None:
        self.finish = finish
        self.end_us = now_us

    @property
    def tokens_per_s(self) -> float | None:
        """The rate its reader sees after the first token; None before the second."""
        span_us = self.last_token_us - self.first_token_us
        return (self.output_tokens - 1) * 1e6 / span_us if span_us > 0 else None

    def gaps_us(self) -> list[int]:
        """Times between tokens, of those whose times are kept; tokens that came at once are 0 apart."""
        return [later - earlier for earlier, later in pairwise(self.token_us)]

    def since_received_us(self, time_us: int) -> int | None:
        return None if time_us < 0 else time_us - self.received_us

    def __str__(self) -> str:
        queue_ms, first_ms = (
            -1.0 if time_us < 0 else (time_us - self.received_us) / 1000
            for time_us in (self.first_step_us, self.first_token_us)
        )
        return (
            f"request {self.request_id}: {self.finish} after {(self.end_us - self.received_us) / 1000:.1f} ms "
            f"(queue {queue_ms:.1f}, first token {first_ms:.1f}); {self.prompt_tokens} prompt tokens, "
            f"{self.cached_tokens} cached, {self.output_tokens} out"
        )


class RecentRequests:
    """All open requests and the `ENDED_MAX` that ended last. Whoever bounds open requests bounds this."""

    def __init__(self) -> None:
        self.on_end: Callable[[RequestTimeline], None] | None = None
        """Told of each request that has ended."""
        self._key = secrets.token_bytes(16)
        self._open: dict[int, RequestTimeline] = {}
        self._ended: deque[RequestTimeline] = deque(maxlen=ENDED_MAX)

    def __iter__(self) -> Iterator[RequestTimeline]:
        """The open ones by arrival, then the ended ones, latest first."""
        yield from list(self._open.values())
        yield from reversed(list(self._ended))

    def open(
        self,
        request_id: int,
        *,
        prompt_tokens: int,
        received_us: int,
        queued_us: int,
        answer_id: str = "",
        session: str | None = None,
        traceparent: str | None = None,
    ) -> RequestTimeline:
        """Begin the record of a request."""
        timeline = RequestTimeline(
            request_id, prompt_tokens, received_us, queued_us, answer_id, self._hashed(session), traceparent
        )
        self._open[request_id] = timeline
        return timeline

    def end(self, timeline: RequestTimeline, finish: str, now_us: int) -> None:
        """Note the end of a request."""
        timeline.note_end(finish, now_us)
        self._ended.append(self._open.pop(timeline.request_id))
        if self.on_end is not None:
            self.on_end(timeline)

    def find(self, name: str) -> list[RequestTimeline]:
        """The requests of an answer's id, by request id; or the one with this request id."""
        found = [one for one in self if name in (one.answer_id, str(one.request_id))]
        return sorted(found, key=lambda one: one.request_id)

    def _hashed(self, session: str | None) -> str | None:
        if session is None:
            return None
        data = session.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._key, digest_size=_HASH_BYTES).hexdigest()
