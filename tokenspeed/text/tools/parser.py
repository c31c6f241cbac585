# SPDX-License-Identifier: MIT
"""Text in, events out: the one incremental parser, driven by a dialect's spec.

Streaming and whole answers use the same parser, and its events (merged) are equal for every cutting of the
text. It holds back only what could still be a marker, and newlines that belong to one. No text is lost: what
looked like a call and is none comes out as content (or as the reasoning it stood in). It knows nothing of
token ids.

    head -> reasoning -> content <-> calls            (reasoning and calls between markers)
    (header -> body)*                                 (channels)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

from tokenspeed.text.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    CallStatus,
    Content,
    Event,
    Reasoning,
    merged,
)
from tokenspeed.text.tools.calls import CallReader
from tokenspeed.text.tools.json_text import is_json
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import CallFormat, Channels, Dialect, Envelope, ReasoningFormat, parts
from tokenspeed.text.tools.tape import BLANKS, Reading, Tape, marks

_NO_TYPES: Final = ArgumentTypes()


class OutputParser:
    """Parses one output. `in_reasoning`: the prompt already opened the reasoning; `calls`: look for calls;
    `types`: of the arguments of the tools on offer."""

    def __init__(
        self,
        dialect: Dialect,
        *,
        in_reasoning: bool = False,
        calls: bool = True,
        types: ArgumentTypes = _NO_TYPES,
    ) -> None:
        self._tape = Tape()
        self._out: list[Event] = []
        if dialect.channels is not None:
            self._reading = _Channels(self._tape, dialect.channels, self._out, calls=calls).read()
        else:
            answer = _Answer(self._tape, dialect, self._out, types, calls=calls)
            self._reading = answer.read(in_reasoning=in_reasoning)

    def feed(self, text: str) -> list[Event]:
        """Take a piece of text; return what it made certain."""
        self._tape.text += text
        return self._advance()

    def flush(self) -> list[Event]:
        """The output ended: whatever is held back is what it is."""
        self._tape.ended = True
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._reading, None)
        if not self._out:
            return []
        out = merged(self._out)
        self._out.clear()
        return out


class _Answer:
    """An answer whose reasoning and calls stand between markers."""

    def __init__(
        self, tape: Tape, dialect: Dialect, out: list[Event], types: ArgumentTypes, *, calls: bool
    ) -> None:
        self._tape = tape
        self._out = out
        self._reasoning = dialect.reasoning
        self._calls = _marks_of(dialect.calls) if calls and dialect.calls is not None else None
        self._call_index = 0
        triggers: tuple[str, ...] = ()
        if self._calls is not None:
            self._reader = CallReader(tape, self._calls.form, types, out.append)
            triggers = self._calls.triggers
        reopens = (dialect.reasoning.open,) if dialect.reasoning and dialect.reasoning.repeats else ()
        self._content_marks = marks((*triggers, *reopens))
        if dialect.reasoning is not None:
            ends = triggers if self._calls is not None and self._calls.form.ends_reasoning else ()
            self._reasoning_marks = marks((dialect.reasoning.close, *ends))

    def read(self, *, in_reasoning: bool) -> Reading[None]:
        if self._reasoning is not None and (in_reasoning or (yield from self._opens(self._reasoning))):
            yield from self._read_reasoning(self._reasoning)
        if self._calls is not None and self._calls.bare:
            yield from self._read_bare_calls()
        newlines = self._calls.form.newlines_before if self._calls is not None else 0
        while True:
            found = yield from self._tape.upto(self._content_marks, self._say, newlines)
            if found is None:
                self._say(self._tape.take_all())
                return
            if self._reasoning is not None and found == self._reasoning.open:
                self._tape.forget()
                yield from self._read_reasoning(self._reasoning)
            else:
                yield from self._read_calls(found, self._say)

    def _say(self, text: str) -> None:
        self._out.append(Content(text))

    def _think(self, text: str) -> None:
        self._out.append(Reasoning(text))

    def _opens(self, form: ReasoningFormat) -> Reading[bool]:
        """Consume the marker that opens reasoning if the answer begins with it; blanks before it are markup."""
        tape = self._tape
        blanks = yield from tape.leading()
        while blanks >= 0:
            if tape.text.startswith(form.open, blanks):
                tape.take(blanks + len(form.open))
                return True
            if tape.ended or not form.open.startswith(tape.text[blanks:]):
                break
            yield
        return False

    def _read_reasoning(self, form: ReasoningFormat) -> Reading[None]:
        """Read to the end of the reasoning, or through the calls that end it."""
        tape = self._tape
        yield from tape.skip("\n", form.newlines_inside)
        while True:
            found = yield from tape.upto(self._reasoning_marks, self._think, form.newlines_inside)
            if found is None:
                self._think(tape.take_all())
                return
            if found == form.close:
                tape.forget()
                yield from tape.skip("\n", form.newlines_after)
                return
            if (yield from self._read_calls(found, self._think)):
                return

    def _read_bare_calls(self) -> Reading[None]:
        """Read calls that no marker announces, at the very start."""
        tape = self._tape
        blanks = yield from tape.leading()
        if blanks >= 0 and tape.text.startswith("{", blanks):
            tape.keep()
            tape.take(blanks)
            yield from self._read_calls("", self._say)

    def _read_calls(self, found: str, give_back: Callable[[str], None]) -> Reading[bool]:
        """Read the calls that begin with the marker `found`, just consumed; False if there was none."""
        tape, calls = self._tape, self._calls
        assert calls is not None
        in_section = bool(calls.section_open) and found == calls.section_open[0]
        rest = (*calls.section_open[1:], *calls.open) if in_section else calls.open[1:]
        begins = yield from tape.marker(rest)
        first = self._call_index
        while begins:
            if not (yield from self._reader.read(self._call_index)):
                break
            self._call_index += 1
            begins = yield from self._goes_on(calls, in_section=in_section)
        else:
            if self._call_index > first:
                tape.forget()
                return True
        (give_back if self._call_index == first else self._say)(tape.give_back())
        return self._call_index > first

    def _goes_on(self, calls: _CallMarks, *, in_section: bool) -> Reading[bool]:
        """After a call: consume what ends it and its section, or what begins the next one."""
        tape = self._tape
        yield from tape.skip(calls.between)
        is_envelope = isinstance(calls.form.arguments, Envelope)
        if is_envelope and tape.text.startswith("{"):
            tape.keep()
            return True
        if calls.close and (yield from tape.next_of(calls.close[0])):
            yield from tape.marker(calls.close)
            yield from tape.skip(calls.between)
        if calls.section_close and (yield from tape.next_of(calls.section_close[0])):
            yield from tape.marker(calls.section_close)
            yield from tape.skip(BLANKS)
            return False
        if not in_section or not calls.open or not (yield from tape.next_of(calls.open[0])):
            return False
        tape.keep()
        if (yield from tape.marker(calls.open)):
            return True
        self._say(tape.give_back())
        return False


class _CallMarks:
    """The markers around calls."""

    __slots__ = ("bare", "between", "close", "form", "open", "section_close", "section_open", "triggers")

    def __init__(self, form: CallFormat) -> None:
        self.form = form
        self.open = parts(form.open)
        self.close = parts(form.close)
        section = form.section
        self.section_open = () if section is None else parts(section.open)
        self.section_close = () if section is None else parts(section.close)
        self.bare = section is not None and section.omitted == "usual"
        alone = section is None or section.omitted == "tolerated"
        self.triggers = (*self.section_open[:1], *(self.open[:1] if alone else ()))
        # A stray brace after the object is a common slip and means nothing.
        slip = "}" if isinstance(form.arguments, Envelope) else ""
        self.between = BLANKS + form.joint.strip() + slip


@cache
def _marks_of(form: CallFormat) -> _CallMarks:
    return _CallMarks(form)


_HEADER_MAX: Final = 512
_RECIPIENT: Final = re.compile(r"to=([^\s<]+)")


class _Channels:
    """An answer of messages, each on a channel."""

    def __init__(self, tape: Tape, form: Channels, out: list[Event], *, calls: bool) -> None:
        self._tape = tape
        self._form = form
        self._out = out
        self._calls = calls
        self._call_index = 0
        self._ends = marks((form.end, form.call_end, form.answer_end, form.start))
        self._header_starts = (form.channel, form.recipient, form.message, form.start)
        self._channel = re.compile(re.escape(form.channel) + r"\s*([^\s<]+)")
        self._spoken: set[str] = set()  # kinds of text there has been some of

    def read(self) -> Reading[None]:
        tape, form = self._tape, self._form
        while True:
            header = yield from self._header()
            found = yield from self._body(header)
            while found is not None and found != form.start:
                yield from tape.skip(BLANKS)
                if (yield from tape.literal(form.start)):
                    found = form.start
                elif tape.ended and form.start.startswith(tape.text):
                    return
                else:
                    found = yield from self._text("final")
            if found is None:
                return

    def _header(self) -> Reading[str]:
        """Consume a header; empty where none stands, and the text then is the answer itself."""
        tape, form = self._tape, self._form
        while True:
            at = tape.text.find(form.message, 0, _HEADER_MAX + len(form.message))
            start = tape.text.lstrip(BLANKS).removeprefix(form.role)
            start = start.lstrip(BLANKS)
            plausible = any(start.startswith(s) or s.startswith(start) for s in self._header_starts)
            plausible |= form.role.startswith(start)
            if at >= 0 and plausible:
                return tape.take(at + len(form.message))
            if not plausible or len(tape.text) >= _HEADER_MAX + len(form.message):
                return ""
            if tape.ended:
                tape.take_all()  # a header cut short is markup
                return ""
            yield

    def _body(self, header: str) -> Reading[str | None]:
        """Read a message's body; return the marker that ended it."""
        recipient = _RECIPIENT.search(header)
        if recipient is not None and recipient.group(1) != self._form.role and self._calls:
            return (yield from self._call(recipient.group(1)))
        channel = self._channel.search(header)
        is_reasoning = channel is not None and channel.group(1) == self._form.reasoning
        return (yield from self._text("reasoning" if is_reasoning else "final"))

    def _text(self, kind: str) -> Reading[str | None]:
        make = Reasoning if kind == "reasoning" else Content
        parted = kind not in self._spoken

        def emit(text: str) -> None:
            nonlocal parted
            # Messages of a kind are one text to the client.
            self._out.append(make(text if parted else "\n" + text))
            parted = True
            self._spoken.add(kind)

        found = yield from self._tape.upto(self._ends, emit)
        if found is None and self._tape.text:
            emit(self._tape.take_all())
        self._tape.forget()
        return found

    def _call(self, recipient: str) -> Reading[str | None]:
        tape, index = self._tape, self._call_index
        self._call_index += 1
        self._spoken.discard("final")
        self._out.append(CallStart(index, recipient.removeprefix(self._form.namespace)))
        written: list[str] = []

        def emit(text: str) -> None:
            written.append(text)
            self._out.append(ArgumentsDelta(index, text))

        yield from tape.skip(BLANKS)
        found: str | None = None
        if tape.text.startswith("{"):
            done = yield from tape.json_value(emit)
            status: CallStatus = "truncated"
            if done:
                status = "complete" if is_json("".join(written)) else "malformed"
        elif tape.ended and not tape.text:
            status = "truncated"
        else:
            found = yield from tape.upto(self._ends, emit)
            tape.forget()
            if not written and found is not None:
                emit("{}")
            status = "complete" if "".join(written) == "{}" else "malformed"
        self._out.append(CallEnd(index, status))
        if found is None:
            yield from tape.skip(BLANKS)
            found = yield from self._text("final")
        return found
