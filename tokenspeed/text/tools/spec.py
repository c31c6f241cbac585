# SPDX-License-Identifier: MIT
"""The vocabulary of dialects: how a family of models writes reasoning and tool calls, as data.

A `Dialect` says all that a parser, a renderer and a grammar need to know; `families` is the table of them.
Nothing here reads or writes text.

Markers are written as the templates write them. White space inside or around a marker is what a renderer
writes; a reader takes any run of blanks, or none, in its place (`parts`).

An answer of a dialect with `calls` is, in order:

    [reasoning] content ( section | call ) content ...

    section = section.open call (joint call)* section.close
    call    = open HEAD name_close ARGUMENTS close              HEAD: the name, in the way of `ids`
            | open {"name": NAME, "arguments": OBJECT} close    (`Envelope`)

One with `channels` is a row of messages, each with a header that says what its body is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

ANY_NEWLINES: Final = 16  # a bound, so that what is held back has one

IdScheme = Literal["unwritten", "functions", "call_id", "member"]
"""How a call names itself. unwritten: not at all; functions: HEAD is `functions.NAME:COUNT` and all of it is the
id; call_id: HEAD is `NAME[CALL_ID]ID`; member: `id` of the envelope. The last two are of nine letters or digits."""

_TOKEN: Final = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
_INNER_TOKEN: Final = re.compile(r"｜\w+｜")  # of DeepSeek, within tags


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning stands between two markers, at the start of an answer or where the prompt opened it."""

    name: str = "think"
    open: str = "<think>"
    close: str = "</think>"
    newlines_inside: int = ANY_NEWLINES
    """Up to so many newlines beside the reasoning are markup: as many as the template writes, or any where it trims."""
    newlines_after: int = ANY_NEWLINES
    repeats: bool = False
    """It may be opened again later in the answer."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Name and arguments are members of one JSON object."""

    name_key: str = "name"
    arguments_key: str = "arguments"


@dataclass(frozen=True, slots=True)
class JsonObject:
    """The arguments are a JSON object between the name and the end of the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """Each argument is an element: `open KEY key_close value_open VALUE close`. Strings stand as they are.

    What is no string stands as JSON. Which of both it is, is said by the tool's schema, or by the markup itself
    where `json_open` is given: that stands in place of `value_open` before what is no string.
    """

    open: str
    key_close: str
    value_open: str = ""
    json_open: str | None = None
    close: str
    padding: str = ""  # one on each side of a value is markup: "\n" or ""
    python_words: bool = False  # True, False and None are written as Python does


Arguments = Envelope | JsonObject | Elements


@dataclass(frozen=True, slots=True)
class Section:
    """What stands around calls."""

    open: str
    close: str
    each: bool = False  # every call has its own
    omitted: Literal["never", "tolerated", "usual"] = "never"
    """Calls without it. tolerated: models forget it; usual: a call may be a whole answer, begun by its brace alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How calls are written."""

    open: str
    name_close: str = ""
    arguments: Arguments
    close: str = ""
    section: Section | None = None
    joint: str = ""  # between two calls, or two sections where each call has its own
    newlines_before: int = 0  # up to so many newlines before the first marker are markup
    ids: IdScheme = "unwritten"
    parallel: bool = True  # an answer may hold several
    ends_reasoning: bool = False
    """A call inside reasoning that was not closed is a call; only where its opener is no text a model would quote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """An answer is messages: `start ROLE [to=RECIPIENT] channel NAME [constraint] message BODY end`."""

    start: str = "<|start|>"
    role: str = "assistant"  # the prompt ends with it, so the first message begins at its channel
    channel: str = "<|channel|>"
    constrain: str = "<|constrain|>"
    message: str = "<|message|>"
    end: str = "<|end|>"
    call_end: str = "<|call|>"
    answer_end: str = "<|return|>"
    recipient: str = "to="
    namespace: str = "functions."
    reasoning: str = "analysis"
    preamble: str = "commentary"  # beside calls, and the channel of calls
    content: str = "final"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a parser looks for; a part that is None is plain content."""

    name: str
    reasoning: ReasoningFormat | None = None
    calls: CallFormat | None = None
    channels: Channels | None = None
    signs: tuple[str, ...] = ()
    """Texts that the source of a template of this family holds."""
    unless: tuple[str, ...] = ()
    """Texts that it does not hold."""
    stops: tuple[str, ...] = ()
    """Tokens that end an answer, whatever the checkpoint's configuration says."""

    @property
    def takes_calls(self) -> bool:
        return self.calls is not None or self.channels is not None

    @property
    def parallel(self) -> bool:
        """Whether an answer may go on after a call. (On channels, a token of the model's own ends it there.)"""
        return self.calls is None or self.calls.parallel

    @property
    def tokens(self) -> tuple[str, ...]:
        """Texts that must reach the parser even where the vocabulary calls them special."""
        return _tokens(self)


PLAIN: Final = Dialect("plain")


def parts(marker: str) -> tuple[str, ...]:
    """The texts of a marker between which blanks may stand, or not."""
    return tuple(marker.split())


@cache
def _tokens(dialect: Dialect) -> tuple[str, ...]:
    texts: list[str | None] = []
    if dialect.reasoning is not None:
        texts += [dialect.reasoning.open, dialect.reasoning.close]
    if dialect.calls is not None:
        calls = dialect.calls
        texts += [calls.open, calls.name_close, calls.close, "[CALL_ID]" if calls.ids == "call_id" else None]
        if calls.section is not None:
            texts += [calls.section.open, calls.section.close]
        if isinstance(calls.arguments, Elements):
            form = calls.arguments
            texts += [form.open, form.key_close, form.value_open, form.json_open, form.close]
    if dialect.channels is not None:
        own = dialect.channels
        texts += [own.start, own.channel, own.constrain, own.message, own.end, own.call_end, own.answer_end]
    found = (
        token for text in texts if text for token in (*_TOKEN.findall(text), *_INNER_TOKEN.findall(text))
    )
    return tuple(dict.fromkeys(found))
