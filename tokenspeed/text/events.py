# SPDX-License-Identifier: MIT
"""What a model's output consists of, as a stream of values: the one vocabulary of parsers and API dialects.

The events of one output, in order: reasoning, content and calls as the model wrote them. `Reasoning`,
`Content` and `ArgumentsDelta` carry pieces; how the text was cut into pieces means nothing (`merged` gives
the canonical form). Every `CallStart` is followed by its `CallEnd`, with only its own `ArgumentsDelta`s
between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

CallStatus = Literal["complete", "truncated", "malformed"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; `index` counts the calls of this output from 0, `id` is what the model wrote, if it did."""

    index: int
    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """The next piece of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """complete: the arguments are whole JSON; truncated: the output ended inside them; malformed: they are
    not JSON."""

    index: int
    status: CallStatus


Event = Reasoning | Content | CallStart | ArgumentsDelta | CallEnd


def merged(events: Iterable[Event]) -> list[Event]:
    """Join neighbouring pieces and drop empty ones: equal for every cutting of the same text."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        match last, event:
            case _, Reasoning("") | Content("") | ArgumentsDelta(_, ""):
                pass
            case (Reasoning(), Reasoning()) | (Content(), Content()) | (ArgumentsDelta(), ArgumentsDelta()):
                joined[-1] = replace(event, text=last.text + event.text)
            case _:
                joined.append(event)
    return joined
