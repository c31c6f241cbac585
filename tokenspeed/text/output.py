# SPDX-License-Identifier: MIT
"""Generated ids of one answer to events: detokenise, watch for stop strings, split reasoning and calls.

In: the ids of each step and, once, how the engine ended. Out: events, and `finish` once the answer is over
for whatever reason; when it is over before the engine knows (a stop string, one call where only one is
wanted), the caller aborts the request. Every call has an id: the model's own, or one made here. No clock, no
socket. Used by every API dialect and by the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tokenspeed.text import detokenise
from tokenspeed.text.events import CallEnd, CallStart, Content, Event
from tokenspeed.text.stop import StopScanner
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools import ids as call_ids
from tokenspeed.text.tools.parser import OutputParser
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import PLAIN, Dialect

OutputFinish = Literal["stop", "length", "tool_calls", "cancelled", "error"]
EngineFinish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How one answer is read."""

    dialect: Dialect = PLAIN
    in_reasoning: bool = False  # the prompt already opened the reasoning
    calls: bool = False  # look for tool calls
    types: ArgumentTypes = field(default_factory=ArgumentTypes)  # of the arguments of the tools on offer
    one_call: bool = False  # the answer ends with its first call
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True


class OutputReader:
    """Reads one answer. `finish` is None until it is over; `stop_string` is what ended it, if one did."""

    def __init__(self, tokenizer: Tokenizer, options: OutputOptions, *, prompt: Sequence[int] = ()) -> None:
        hidden = tokenizer.special_ids if options.skip_special_tokens else frozenset[int]()
        hidden -= {tokenizer.token_id(token) for token in options.dialect.tokens}
        self._detokeniser = detokenise.start(tokenizer, hidden=hidden, prompt=prompt)
        self._stops = StopScanner(options.stops, include=options.include_stop)
        self._parser = OutputParser(
            options.dialect, in_reasoning=options.in_reasoning, calls=options.calls, types=options.types
        )
        self._options = options
        self._one_call = options.calls and (options.one_call or not options.dialect.parallel)
        self._called = False
        self.finish: OutputFinish | None = None

    @property
    def stop_string(self) -> str | None:
        return self._stops.hit

    def read(self, ids: Sequence[int], finish: EngineFinish | None = None) -> tuple[list[Event], int]:
        """Like `feed`, and say how many of the ids belong to the answer: none is taken past its end."""
        text_may_end_it = bool(self._options.stops) or self._one_call
        if not text_may_end_it or len(ids) < 2:
            return self.feed(ids, finish), len(ids)
        events: list[Event] = []
        for index in range(len(ids)):
            last = index == len(ids) - 1
            events += self.feed(ids[index : index + 1], finish if last else None)
            if self.finish is not None:
                return events, index + 1
        return events, len(ids)

    def feed(self, ids: Sequence[int], finish: EngineFinish | None = None) -> list[Event]:
        """Take a step's ids; with finish "stop" the last of them is the stop id, which is no text."""
        if self.finish is not None:
            return []
        if finish == "stop" and not self._options.include_stop:
            ids = ids[:-1]
        text = self._detokeniser.feed(ids)
        if finish is not None:
            text += self._detokeniser.flush()
        certain = self._stops.feed(text)
        if self._stops.hit is not None:
            finish = "stop"
        elif finish is not None:
            certain += self._stops.flush()
        return self._accept(self._parser.feed(certain), finish)

    def _accept(self, events: list[Event], finish: EngineFinish | None) -> list[Event]:
        if finish is not None:
            events += self._parser.flush()
        for index, event in enumerate(events):
            if isinstance(event, CallStart):
                self._called = True
                if event.id is None:
                    events[index] = replace(event, id=call_ids.fresh(self._options.dialect.calls))
        if self._one_call:
            end = next((i for i, event in enumerate(events) if isinstance(event, CallEnd)), None)
            if end is not None:
                del events[end + 1 :]
                finish = finish or "stop"
        if finish is not None:
            self.finish = "tool_calls" if finish == "stop" and self._called else finish
        return events


def content_of(events: Sequence[Event]) -> str:
    """The plain text among events."""
    return "".join(event.text for event in events if isinstance(event, Content))
