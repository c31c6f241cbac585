# SPDX-License-Identifier: MIT
"""What is known of prompts already encoded, so that a turn costs what is new in it.

Agents send their whole history every turn. A `Record` keeps of one prompt: the messages as they were sent (raw
JSON), its rendered text, its ids, and the cuts between them. The next turn of the session begins with the same
bytes; what follows is decoded, rendered by itself where the template only appends there (`append`), and encoded
from the last cut of the text both share (`cuts`). Where the template does not only append, the whole history is
rendered and the shared text is found by comparison. Once an answer is there, `with_answer` foretells the next
prompt, which will quote it: its ids are then there before they are asked for.

    span    [{system},{user},{assistant},{tool}            as sent, without the closing bracket
                          ^ mark                ^ mark      ends of messages at which a prompt was made
    text    ...<|im_end|>\n<|im_start|>assistant\n          UTF-8, up to what the model is to continue (or has)
    ids     ... 151645 198 151644 77091 198                 of exactly this text
    cuts    ^              ^                                (first byte, end byte, index of the id)

Nothing is believed because a client says so: a session's name, and an index over samples of the bytes, only
propose records; bytes are compared. Records of different salts never meet. Invariant: the ids of a turn are
those that rendering and encoding everything would give; `Ledger` holds at most `bytes_max`, least recently used
first to go.

`Ledger` itself is used from one thread. `Writer` is pure and may work in any: it turns records and new messages
into turns.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

import msgspec
import numpy as np

from tokenspeed.base.log import get_logger
from tokenspeed.text.append import ROLES, Appending, Shape, has_reasoning
from tokenspeed.text.chat_template import ChatTemplate, Message
from tokenspeed.text.cuts import NONE
from tokenspeed.text.plane import TextPlane
from tokenspeed.text.rope import Rope, common_bytes

BYTES_MAX: Final = 256 << 20
VARIABLES_MAX: Final = 8  # sets of chat_template_kwargs that are linted; turns with others are rendered whole
_MARKS_MAX: Final = 64
_SAMPLE_BYTES: Final = 256
_LEVEL_LEAST: Final = 8  # 2**8 bytes: what is shorter is not worth a record
_CANDIDATES_MAX: Final = 64  # asked whether the prompt begins with all of them: a failed comparison is short
_COMPARED_MAX: Final = 4  # asked how much they share: that reads all they share
_RECORD_BYTES: Final = 4096  # what a record weighs beside its bytes, about
_ENDING_BYTES: Final = 256  # of a prompt, in which a reasoning may be opened
_log = get_logger("text")


class Effort(Enum):
    """How a turn's ids came about."""

    WHOLE = "whole"  # everything was rendered and encoded
    COMPARED = "compared"  # everything was rendered; encoded from where it differs from a record
    APPENDED = "appended"  # only what is new was rendered and encoded


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat prompt as a request asks for it."""

    data: bytes
    """What holds, from `begin` to `end`, the JSON array of its messages, without the closing bracket."""
    begin: int
    end: int
    tools: bytes = b""
    """The JSON of its tools; empty if there are none."""
    variables: bytes = b"{}"
    """The template's variables, as canonical JSON."""
    context: bytes = b""
    """What stands before the messages, and how the dialect of the request spells them."""
    salt: bytes = b""
    session: str | None = None

    @property
    def way(self) -> tuple[bytes, bytes, bytes]:
        """What the text depends on, beside the messages."""
        return self.context, self.tools, self.variables

    @property
    def span(self) -> memoryview:
        """The array, without the closing bracket."""
        return memoryview(self.data)[self.begin : self.end]

    def begins_like(self, other: Asked) -> bool:
        """Whether all of the other's messages are the first of these."""
        length = other.end - other.begin
        return self.end - self.begin >= length and self.data.startswith(other.span, self.begin)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text, its ids, and where both may be cut."""

    text: Rope  # UTF-8
    ids: Rope  # int32
    starts: np.ndarray  # int64 [cuts]: first byte of each cut token
    ends: np.ndarray  # its end
    indexes: np.ndarray  # of its id

    @property
    def bytes_held(self) -> int:
        return len(self.text) + len(self.ids) + 3 * self.starts.nbytes


@dataclass(frozen=True, slots=True)
class Mark:
    """The end of a message at which a prompt was made, and what may be said of the messages up to it."""

    span_end: int
    closed_end: int  # bytes of the prompt's text without its generation prompt
    role: str  # of the last message
    reasoning: bool


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One prompt, and perhaps its answer."""

    asked: Asked
    times: tuple[str, ...]  # what the template was told of the time
    encoded: Encoded
    marks: tuple[Mark, ...]  # in order; empty where the template's text cannot be appended to
    system: bool  # the first message is the system's
    lineage: int  # equal for all whose messages grew from one history

    @property
    def bytes_held(self) -> int:
        asked = len(self.asked.data) + len(self.asked.tools) + len(self.asked.context)
        return asked + self.encoded.bytes_held + _RECORD_BYTES


@dataclass(frozen=True, slots=True)
class Found:
    """A record that a prompt begins like; `mark` is the last that lies in the messages both share."""

    record: Record
    mark: Mark | None

    @property
    def continues(self) -> bool:
        """The prompt adds to all of the record's messages."""
        return self.mark is not None and self.mark is self.record.marks[-1]


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt's ids, what to remember of it, and the record that this replaces."""

    record: Record
    effort: Effort
    opens_reasoning: bool
    prompt_ids: np.ndarray  # int32 [n], read-only
    ids_reused: int
    replaced: Record | None = None


class Writer:
    """Makes turns of one model. Holds verdicts on its template, no prompt."""

    def __init__(self, plane: TextPlane) -> None:
        self._plane = plane
        self._lints: dict[bytes, Appending] = {}
        self._lineages = itertools.count()

    def lint(self) -> None:
        """Find out what the template does when messages are added, and log where it does not only append."""
        lint = self._lint(b"{}")
        if lint is None:
            return
        if not lint.refused:
            _log.info("chat template: only appends; a turn renders its new messages alone")
            return
        everywhere = len(lint.refused) == len(lint.verdicts)
        _log.info(
            "chat template: not append-only %s; such turns are rendered whole and compared",
            "anywhere" if everywhere else "in turns " + ", ".join(sorted(map(str, lint.refused))),
        )

    def append(self, found: Found, asked: Asked, messages: list[Message]) -> Turn | None:
        """The turn that adds `messages` at the mark found; None where the whole history must be rendered."""
        record, mark = found.record, found.mark
        lint = self._lint(asked.variables)
        messages = messages if lint is None else self._template.placed(messages, later=True)
        if mark is None or lint is None or self._template.times() != record.times or self._watched(messages):
            return None
        known = record.encoded
        marks = record.marks[: bisect_right(record.marks, mark.span_end, key=lambda each: each.span_end)]
        if messages:
            reasoning = mark.reasoning or has_reasoning(messages)
            user = any(message["role"] == "user" for message in messages)
            shape = Shape(record.system, bool(asked.tools), reasoning, user)
            added = lint.added(shape, mark.role, messages)
        else:  # a prompt that was made before: sent again, or gone back to
            reasoning = mark.reasoning
            added = lint.opening(bool(asked.tools), mark.role)
        if added is None:
            return None
        new = added.encode()
        text = known.text.head(mark.closed_end).plus(new)
        common = mark.closed_end + common_bytes(known.text.tail(mark.closed_end), new)
        if messages:
            end = self._mark(lint, asked, messages[-1]["role"], reasoning, text)
            if end is None:
                return None
            marks = (*marks[1 - _MARKS_MAX :], end)
        encoded, reused = self._resume(known, text, common)
        kept = replace(record, asked=asked, encoded=encoded, marks=marks)
        return self._turn(kept, Effort.APPENDED, reused, record if found.continues else None)

    def render(
        self,
        found: Found | None,
        asked: Asked,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
    ) -> Turn:
        """The turn of a whole history; `RequestError` where the model cannot express it."""
        times = () if self._plane.template is None else self._template.times()
        messages = messages if self._plane.template is None else self._template.placed(messages)
        whole = self._plane.text_of_chat(messages, tools=tools, variables=variables).encode()
        text = Rope().plus(whole)
        system = messages[0]["role"] == "system"
        lint = self._lint(asked.variables)
        mark = None
        if lint is not None and not self._watched(messages) and _leads(messages):
            mark = self._mark(lint, asked, messages[-1]["role"], has_reasoning(messages), text)
        known = _EMPTY if found is None else found.record.encoded
        encoded, reused = self._resume(known, text, known.text.common(whole))
        marks = () if mark is None else (mark,)
        grows = found is not None and asked.begins_like(found.record.asked)
        lineage = found.record.lineage if found is not None and grows else next(self._lineages)
        record = Record(asked, times, encoded, marks, system, lineage)
        replaced = found.record if found is not None and found.continues else None
        return self._turn(record, Effort.COMPARED if reused else Effort.WHOLE, reused, replaced)

    def with_answer(self, record: Record, ids: list[int]) -> Record | None:
        """The record of prompt and answer as one text: what the next prompt may begin with.

        None where ids do not spell a text of their own: the vocabulary is not byte-level, or the answer was cut
        inside a character. The ids kept are those of the text, which are the generated ones only if the model
        chose the split that the tokenizer would choose.
        """
        table = self._plane.tokenizer.byte_table
        if table is None:
            return None
        known = record.encoded
        text = known.text.plus(b"".join(table[token_id] for token_id in ids if 0 <= token_id < len(table)))
        try:
            encoded, _ = self._resume(known, text, len(known.text))
        except UnicodeDecodeError:
            return None
        return replace(record, encoded=encoded)

    @property
    def _template(self) -> ChatTemplate:
        template = self._plane.template
        assert template is not None
        return template

    def _turn(self, record: Record, effort: Effort, reused: int, replaced: Record | None) -> Turn:
        text = record.encoded.text
        tail = text.tail(max(0, len(text) - _ENDING_BYTES)).decode(errors="replace")
        ids = np.frombuffer(bytes(record.encoded.ids), np.int32)
        return Turn(record, effort, self._plane.opens_reasoning(tail), ids, reused, replaced)

    def _mark(self, lint: Appending, asked: Asked, role: str, reasoning: bool, text: Rope) -> Mark | None:
        """The mark at the end of a prompt, if it can be appended to."""
        opening = lint.opening(bool(asked.tools), role) if role in ROLES else None
        if opening is None:
            return None
        closed_end = len(text) - len(opening.encode())
        if closed_end < 0 or text.tail(closed_end) != opening.encode():
            return None
        return Mark(asked.end - asked.begin, closed_end, role, reasoning)

    def _resume(self, known: Encoded, text: Rope, common: int) -> tuple[Encoded, int]:
        """Encode a text that shares its first `common` bytes with a known one; (it, ids taken over)."""
        tokenizer = self._plane.tokenizer
        at = bisect_right(known.ends, common) - 1  # the last cut token that lies whole in what is shared
        begin, index = (int(known.starts[at]), int(known.indexes[at])) if at >= 0 else (0, 0)
        rest = text.tail(begin)
        new = np.array(tokenizer.encode(rest.decode(), add_special_tokens=False), np.int32)
        starts, ends, indexes = tokenizer.cuts.locate(rest, new)
        if at >= 0 and not (len(starts) and starts[0] == 0):
            return self._resume(_EMPTY, text, 0)  # not the cut it was taken for; never seen
        at = max(at, 0)
        encoded = Encoded(
            text,
            known.ids.head(index * new.itemsize).plus(new.tobytes()),
            np.concatenate([known.starts[:at], starts + begin]),
            np.concatenate([known.ends[:at], ends + begin]),
            np.concatenate([known.indexes[:at], indexes + index]),
        )
        return encoded, index

    def _watched(self, messages: list[Message]) -> bool:
        """Whether the words of some message may change what the template writes elsewhere."""
        words = self._template.watched
        return bool(words) and any(
            word in text for message in messages for text in _texts(message) for word in words
        )

    def _lint(self, variables: bytes) -> Appending | None:
        lint = self._lints.get(variables)
        if lint is None and self._plane.template is not None and len(self._lints) < VARIABLES_MAX:
            lint = self._lints[variables] = Appending(
                self._plane.template, msgspec.json.decode(variables, type=dict[str, Any])
            )
        return lint


class Ledger:
    """The records of one server, bounded. Used from one thread."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._records: OrderedDict[Record, None] = OrderedDict()
        self._by_sample: dict[tuple[bytes, int, int], dict[Record, None]] = {}
        self._by_session: dict[tuple[bytes, str], Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, record: Record) -> bool:
        return record in self._records

    def find(self, asked: Asked) -> Found | None:
        """The record that shares most with a prompt: the longest known prefix of its messages."""
        others: list[tuple[bool, int, Record]] = []
        for record in self._candidates(asked):
            is_same_way = record.asked.way == asked.way
            if is_same_way and asked.begins_like(record.asked):
                self._records.move_to_end(record)
                return _found(record, asked, record.asked.end - record.asked.begin)
            if len(others) < _COMPARED_MAX:
                others.append((is_same_way, common_bytes(record.asked.span, asked.span), record))
        if not others:
            return None
        _, shared, record = max(others, key=lambda other: other[:2])
        self._records.move_to_end(record)
        return _found(record, asked, shared)

    def keep(self, record: Record, replaced: Record | None = None) -> None:
        """Remember a record, instead of another or of whatever was not used for longest."""
        if replaced is not None:
            self.drop(replaced)
        if record.bytes_held > self._bytes_max or record in self._records:
            return
        self._records[record] = None
        self.bytes_held += record.bytes_held
        for key in _samples(record.asked):
            self._by_sample.setdefault(key, {})[record] = None
        if record.asked.session is not None:
            self._by_session[record.asked.salt, record.asked.session] = record
        while self.bytes_held > self._bytes_max:
            self.drop(next(iter(self._records)))

    def drop(self, record: Record) -> bool:
        """Forget a record; False if it is not held."""
        if record not in self._records:
            return False
        del self._records[record]
        self.bytes_held -= record.bytes_held
        for key in _samples(record.asked):
            same = self._by_sample[key]
            del same[record]
            if not same:
                del self._by_sample[key]
        if record.asked.session is not None:
            name = (record.asked.salt, record.asked.session)
            if self._by_session.get(name) is record:
                del self._by_session[name]
        return True

    def drop_lineage(self, lineage: int) -> None:
        """Forget all that grew from one rendering: one of them was found wrong."""
        for record in [record for record in self._records if record.lineage == lineage]:
            self.drop(record)

    def _candidates(self, asked: Asked) -> Iterator[Record]:
        """Records worth comparing, likely ones first: the session's, then those alike furthest into the span."""
        if asked.session is not None and (named := self._by_session.get((asked.salt, asked.session))):
            yield named
        for key in sorted(_samples(asked), key=lambda key: -key[1]):
            same = self._by_sample.get(key)
            if same:
                yield from itertools.islice(reversed(same), _CANDIDATES_MAX)
                return


_EMPTY: Final = Encoded(Rope(), Rope(), NONE, NONE, NONE)


def _found(record: Record, asked: Asked, shared: int) -> Found:
    """Marks count only where all that the text depends on, beside the messages, is the same."""
    if record.asked.way != asked.way:
        return Found(record, None)
    at = bisect_right(record.marks, shared, key=lambda mark: mark.span_end) - 1
    return Found(record, record.marks[at] if at >= 0 else None)


def _samples(asked: Asked) -> list[tuple[bytes, int, int]]:
    """Keys of the last bytes of the span's first 256, 512, 1024 ... bytes: equal where spans begin alike."""
    data, begin = asked.data, asked.begin
    return [
        (asked.salt, level, hash(data[begin + (1 << level) - _SAMPLE_BYTES : begin + (1 << level)]))
        for level in range(_LEVEL_LEAST, (asked.end - begin).bit_length())
    ]


def _texts(message: Message) -> Iterator[str]:
    """The words of a message."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content or ())
    if reasoning := message.get("reasoning_content"):
        yield reasoning


def _leads(messages: list[Message]) -> bool:
    """Whether system messages stand at the beginning only."""
    rest = itertools.dropwhile(lambda message: message["role"] == "system", messages)
    return all(message["role"] != "system" for message in rest)
