# SPDX-License-Identifier: MIT
"""Reads one tool call by its format: events as early as the text allows.

In: the tape, just after the call's opener. Out: `CallStart`, `ArgumentsDelta`s that join to JSON or to a true
beginning of it, `CallEnd`; or nothing, and False, when the text is no call after all: what was consumed is then
on the tape to be given back. Nothing is repaired: arguments of a truncated call stay truncated. It knows
nothing of what stands around calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

from tokenspeed.text.events import ArgumentsDelta, CallEnd, CallStart, CallStatus, Content, Event
from tokenspeed.text.tools import ids
from tokenspeed.text.tools.json_text import escaped, is_json, quoted, text_of
from tokenspeed.text.tools.schema import ANY, ArgumentTypes, json_of
from tokenspeed.text.tools.spec import CallFormat, Elements, Envelope, JsonObject, parts
from tokenspeed.text.tools.tape import BLANKS, Reading, Tape, marks

_NAME: Final = re.compile(r"[^\s<>{}\[\]\"'`]+")
_NAME_MAX: Final = 256
_KEY: Final = re.compile(r"[^<>\"\n]+")
_KEY_MAX: Final = 512
_CALL_ID: Final = "[CALL_ID]"
_ARGUMENT_KEYS: Final = ("arguments", "parameters")  # families differ, and models mix them up
_ENVELOPE_KEYS: Final = ("id", "type")
_STRING: Final = frozenset({"string"})


class CallReader:
    """Reads the calls of one output."""

    def __init__(
        self, tape: Tape, call_format: CallFormat, types: ArgumentTypes, emit: Callable[[Event], None]
    ) -> None:
        self._tape = tape
        self._format = call_format
        self._types = types
        self._emit = emit
        own = _marks_of(call_format)
        self._close, self._ends, self._elements = own.close, own.ends, own.elements
        self._index = 0
        self._name = ""
        self._started = False
        self._written: list[str] = []

    def read(self, index: int) -> Reading[bool]:
        """Read a call that will be the `index`th of the output, opener and all before it being consumed."""
        self._index, self._started, self._written = index, False, []
        match self._format.arguments:
            case Envelope():
                status = yield from self._envelope(self._format.arguments)
            case JsonObject():
                status = (yield from self._object()) if (yield from self._head()) else None
            case Elements():
                status = (yield from self._element_list()) if (yield from self._head()) else None
        if status is None:
            return False
        self._emit(CallEnd(index, status))
        rest = self._tape.give_back() if status == "malformed" else ""
        if rest:
            self._emit(Content(rest))
        return True

    def _start(self, name: str, call_id: str | None) -> None:
        self._emit(CallStart(self._index, name, call_id))
        self._name = name
        self._started = True
        self._tape.forget()
        if self._written:
            self._emit(ArgumentsDelta(self._index, "".join(self._written)))

    def _write(self, text: str) -> None:
        self._written.append(text)
        if self._started:
            self._emit(ArgumentsDelta(self._index, text))

    def _judge(self) -> CallStatus:
        return "complete" if is_json("".join(self._written)) else "malformed"

    # -- {"name": ..., "arguments": ...} ------------------------------------------------------------------

    def _envelope(self, form: Envelope) -> Reading[CallStatus | None]:
        tape = self._tape
        name: str | None = None
        call_id: str | None = None
        has_arguments = False
        yield from tape.skip(BLANKS)
        if not (yield from tape.literal("{")):
            return None
        while True:
            yield from tape.skip(BLANKS + ",")
            if tape.text.startswith("}"):
                tape.take(1)
                if name and not self._started:
                    self._start(name, call_id)
                if not has_arguments:
                    self._write("{}")
                return self._judge() if name else None
            key = (yield from self._json_string()) if tape.text.startswith('"') else None
            if key is not None and (yield from tape.marker((":",))):
                yield from tape.skip(BLANKS)
                is_arguments = key == form.arguments_key or key in _ARGUMENT_KEYS
                if is_arguments and not has_arguments:
                    has_arguments = True
                    if name and tape.text:
                        self._start(name, call_id)
                    yield from self._argument_value()
                elif self._format.open == "" and not (
                    is_arguments or key in (form.name_key, *_ENVELOPE_KEYS)
                ):
                    return self._broken()  # an object like any other, and no marker said that it is a call
                elif key == form.name_key and name is None:
                    name = yield from self._json_string()
                    if name and has_arguments:
                        self._start(name, call_id)
                elif key == "id":
                    call_id = yield from self._json_string()
                else:
                    yield from tape.json_value(_ignore)
            elif not (tape.ended and not tape.text):
                return self._broken()
            if tape.ended and not tape.text:
                if name and not self._started:
                    self._start(name, call_id)
                return "truncated" if self._started else None

    def _broken(self) -> CallStatus | None:
        """What an envelope is that breaks off: its arguments may be whole all the same."""
        return self._judge() if self._started else None

    def _json_string(self) -> Reading[str | None]:
        """Consume a JSON value; its text if it is a string."""
        pieces: list[str] = []
        yield from self._tape.json_value(pieces.append)
        return text_of("".join(pieces))

    def _argument_value(self) -> Reading[None]:
        if not self._tape.text.startswith('"'):
            yield from self._tape.json_value(self._write)
            return
        # Some models quote the arguments once more.
        pieces: list[str] = []
        if (yield from self._tape.json_value(pieces.append)):
            text = "".join(pieces)
            inner = text_of(text)
            self._write(text if inner is None else inner)

    # -- HEAD name_close ----------------------------------------------------------------------------------

    def _head(self) -> Reading[bool]:
        """Read the name and start the call."""
        tape = self._tape
        yield from tape.skip(BLANKS)
        head = yield from tape.run(_NAME, _NAME_MAX)
        call_id: str | None = None
        if self._format.ids == "call_id" and (yield from tape.literal(_CALL_ID)):
            call_id = yield from tape.run(_NAME, _NAME_MAX)
        closers = parts(self._format.name_close)
        if not head or not (yield from tape.marker(closers)):
            return False
        if not closers:
            # A name that nothing ends: only what must come next shows that it was one.
            yield from tape.skip(BLANKS)
            first = () if self._elements is None else self._elements.open[:1]
            if (yield from tape.next_of(*first, *self._ends)) is None:
                return False
        name = head
        if self._format.ids == "functions":
            name, call_id = ids.named(head)
        if not name:
            return False
        self._start(name, call_id)
        return True

    # -- {...} close --------------------------------------------------------------------------------------

    def _object(self) -> Reading[CallStatus]:
        tape = self._tape
        yield from tape.skip(BLANKS)
        if tape.text.startswith("{"):
            return self._judge() if (yield from tape.json_value(self._write)) else "truncated"
        if tape.ended and not tape.text:
            return "truncated"
        if (yield from tape.next_of(*self._ends)) is not None:
            self._write("{}")
            return "complete"
        if self._ends:
            if (yield from tape.upto(marks(self._ends), self._write)) is None:
                self._write(tape.take_all())
            tape.forget()
        return "malformed"

    # -- <key>value</key> ... close -----------------------------------------------------------------------

    def _element_list(self) -> Reading[CallStatus]:
        tape, marks = self._tape, self._elements
        assert marks is not None
        before = "{"
        while True:
            yield from tape.skip(BLANKS)
            tape.keep()
            coming = yield from tape.next_of(marks.open[0], *self._ends)
            if coming == marks.open[0]:
                if (yield from self._element(marks, before)):
                    before = ", "
                    continue
            elif coming is not None:
                self._write("{}" if before == "{" else "}")
                if coming in self._close:
                    yield from tape.marker(self._close)
                return "complete"
            elif not tape.ended or not any(end.startswith(tape.text) for end in (*marks.open, *self._ends)):
                return "malformed"
            if not tape.ended:
                return "malformed"
            # Whatever is left is the beginning of markup, not text.
            tape.take_all()
            tape.forget()
            return "truncated"

    def _element(self, marks: _ElementMarks, before: str) -> Reading[bool]:
        """Read one element; False if it breaks off."""
        tape, form = self._tape, marks.form
        yield from tape.marker(marks.open)
        key = yield from tape.run(_KEY, _KEY_MAX)
        if not key or not (yield from tape.marker(marks.key_close)):
            return False
        types = self._types.of(self._name, key)
        if marks.json_open:
            yield from tape.skip(BLANKS)
            coming = yield from tape.next_of(marks.value_open[0], marks.json_open[0])
            types = ANY if coming == marks.json_open[0] else _STRING
            opener = marks.json_open if coming == marks.json_open[0] else marks.value_open
        else:
            opener = marks.value_open
        if not (yield from tape.marker(opener)):
            return False
        tape.forget()
        if form.padding:
            yield from tape.skip("\n", len(form.padding))
        lead = f"{before}{quoted(key)}: "
        if types == _STRING:
            self._write(lead + '"')
            closed = yield from tape.upto(marks.value_close, self._write_escaped, len(form.padding))
            if closed is not None:
                self._write('"')
        else:
            pieces: list[str] = []
            closed = yield from tape.upto(marks.value_close, pieces.append, len(form.padding))
            if closed is not None:
                self._write(lead + json_of("".join(pieces), types))
        return closed is not None

    def _write_escaped(self, text: str) -> None:
        self._write(escaped(text))


class _ElementMarks:
    """The markers of elements."""

    __slots__ = ("form", "json_open", "key_close", "open", "value_close", "value_open")

    def __init__(self, form: Elements, ends: tuple[str, ...]) -> None:
        self.form = form
        self.open = parts(form.open)
        self.key_close = parts(form.key_close)
        self.value_open = parts(form.value_open)
        self.json_open = parts(form.json_open or "")
        # A value may quote its own closing marker; it is the end only where the call goes on or ends.
        self.value_close = marks(parts(form.close), followers=(self.open[0], *ends))


class _CallMarks:
    """The markers of a call."""

    __slots__ = ("close", "elements", "ends")

    def __init__(self, form: CallFormat) -> None:
        self.close = parts(form.close)
        # A call's end, or its section's where a model forgot the call's.
        self.ends = (*self.close[:1], *(parts(form.section.close)[:1] if form.section is not None else ()))
        self.elements = (
            _ElementMarks(form.arguments, self.ends) if isinstance(form.arguments, Elements) else None
        )


@cache
def _marks_of(form: CallFormat) -> _CallMarks:
    return _CallMarks(form)


def _ignore(_: str) -> None:
    pass
