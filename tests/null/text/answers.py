# SPDX-License-Identifier: MIT
"""Answers made at random for a dialect, with the events they must be read as; and text that only looks like one.

Everything comes from a `random.Random`, so a case is named by its seed. Texts are full of what could confuse a
parser: pieces of the dialect's own markers, brackets, quotes, newlines, characters of several bytes.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from tokenspeed.text.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    Content,
    Event,
    Reasoning,
    merged,
)
from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.parser import OutputParser
from tokenspeed.text.tools.render import Call, render
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import Dialect, Elements, parts

PLAIN_PIECES = [
    "a", "the cat", " ", "\n", "\n\n", "<", ">", "</", "{", "}", "[", "]", '"', "\\", "\\n", ":", ",", "é", "你好",
    "🙂", "</a>", "\t", "'", "`", "=", "|", "null", "5", '{"a": 1}', "&amp;", "functions.x:0", "\r\n", "\u2028",
]  # fmt: skip
NAMES = ["read", "write_file", "mcp.list-9", "x", "Bash", "str_replace_based_edit_tool"]
KEYS = ["path", "a", "new str", "old-string", "é", "$x", "file.name", "0"]


@dataclass(frozen=True)
class Answer:
    """One answer: its text and what it must be read as."""

    text: str
    reasoning: str
    content: str
    calls: list[Call]
    types: ArgumentTypes
    ids: list[str | None]

    @property
    def events(self) -> list[Event]:
        events: list[Event] = [Reasoning(self.reasoning)] if self.reasoning else []
        events += [Content(self.content)] if self.content else []
        for index, (call, call_id) in enumerate(zip(self.calls, self.ids, strict=True)):
            events += [CallStart(index, call.name, call_id), ArgumentsDelta(index, written(call))]
            events += [CallEnd(index, "complete")]
        return events


def written(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def parse(
    dialect: Dialect, text: str, types: ArgumentTypes, cuts: Iterable[int] = (), **options: bool
) -> list[Event]:
    """The events of a text fed in the pieces that `cuts` make."""
    parser = OutputParser(dialect, types=types, **options)
    events: list[Event] = []
    for start, end in pairwise([0, *cuts, len(text)]):
        events += parser.feed(text[start:end])
    return merged(events + parser.flush())


def cuts_of(rng: random.Random, text: str) -> list[int]:
    """Few cuts, many, or every one."""
    length = len(text)
    kind = rng.random()
    if kind < 0.2:
        return list(range(1, length))
    count = rng.randrange(1, 4) if kind < 0.6 else max(1, length // rng.randrange(3, 9))
    return sorted(rng.randrange(length + 1) for _ in range(count))


@cache
def _shape(dialect: Dialect) -> tuple[list[str], re.Pattern[str], re.Pattern[str] | None]:
    """Pieces to make text of, what prose must not hold, what a value must not hold."""
    markers = list(dialect.tokens)
    calls = dialect.calls
    followed: re.Pattern[str] | None = None
    if calls is not None:
        section = calls.section
        markers += parts(calls.open) + parts(calls.close)
        markers += parts(section.open) + parts(section.close) if section is not None else ()
        if isinstance(calls.arguments, Elements):
            form = calls.arguments
            markers += (parts(form.open)[0], form.close.strip())
            ends = [parts(form.open)[0], *parts(calls.close)[:1]]
            ends += parts(section.close)[:1] if section is not None else ()
            followed = re.compile(rf"{re.escape(form.close.strip())}\s*({'|'.join(map(re.escape, ends))}|$)")
    if dialect.channels is not None:
        markers += ["to=functions.f", "analysis"]
    shown = [marker for marker in markers if marker.strip()]
    pieces = PLAIN_PIECES + [marker[:n] for marker in shown for n in (1, 3, len(marker) - 1) if n > 0]
    banned = [m for m in shown if len(m) > 1 and m not in ("to=functions.f", "analysis")]
    return pieces, re.compile("|".join(map(re.escape, banned))), followed


def _text(rng: random.Random, pieces: list[str], most: int) -> str:
    return "".join(rng.choices(pieces, k=rng.randrange(most)))


def _prose(rng: random.Random, dialect: Dialect, trim: str) -> str:
    pieces, banned, _ = _shape(dialect)
    text = _without(banned, _text(rng, pieces, 9)) if rng.random() < 0.7 else ""
    return text.strip(trim)


def _without(banned: re.Pattern[str], text: str) -> str:
    """The text less what must not be in it, also what comes about when something is taken out."""
    while (shorter := banned.sub("", text)) != text:
        text = shorter
    return text


def _value(rng: random.Random, dialect: Dialect, depth: int = 0) -> Any:
    pieces, _, followed = _shape(dialect)
    kind = rng.randrange(9 if depth < 2 else 7)
    match kind:
        case 0 | 1 | 2:
            text = _text(rng, pieces + list(dialect.tokens), 7)
            if rng.random() < 0.2 and dialect.calls is not None:
                form = dialect.calls.arguments
                own = form.close if isinstance(form, Elements) else dialect.calls.close
                text += own + _text(rng, pieces, 4)  # a value that quotes the end of itself
            return text if followed is None else _without(followed, text)
        case 3:
            return rng.choice([0, 7, -12345, 10**15])
        case 4:
            return rng.choice([True, False])
        case 5:
            return rng.choice([0.5, -1e-9, 3.0])
        case 6:
            return None
        case 7:
            return [_value(rng, dialect, depth + 1) for _ in range(rng.randrange(3))]
        case _:
            return {rng.choice(KEYS): _value(rng, dialect, depth + 1) for _ in range(rng.randrange(3))}


def _schema_of(rng: random.Random, value: Any) -> dict[str, Any]:
    """A schema that has the value, said in one of several ways."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    name = names.get(type(value), "null")
    match rng.randrange(4):
        case 0 if name != "string":
            return {"anyOf": [{"type": name}, {"type": "null"}]}
        case 1:
            return {"$ref": f"#/$defs/{name}"}
        case 2 if name in ("integer", "boolean"):
            return {"enum": [value]}
        case 3 if name != "string":
            return {"type": [name, "array"]}
        case _:
            return {"type": name}


def make(rng: random.Random, dialect: Dialect) -> Answer:
    """An answer of `dialect`."""
    calls_form = dialect.calls
    reads_reasoning = dialect.reasoning is not None or dialect.channels is not None
    bare = calls_form is not None and calls_form.section is not None and calls_form.section.omitted == "usual"
    most = (2 if bare else 4) if rng.random() < 0.8 else 1
    calls: list[Call] = []
    tools: list[dict[str, Any]] = []
    names = rng.sample(NAMES, 3)
    for index in range(rng.randrange(most)):
        arguments = {key: _value(rng, dialect) for key in rng.sample(KEYS, rng.randrange(4))}
        shown = {
            key: value for key, value in arguments.items() if type(value) is not str or rng.random() < 0.5
        }
        tools.append(
            {
                "type": "function",
                "function": {
                    "name": names[index],
                    "parameters": {
                        "properties": {key: _schema_of(rng, value) for key, value in shown.items()},
                        "$defs": {
                            n: {"type": n}
                            for n in ("string", "boolean", "integer", "number", "array", "object", "null")
                        },
                    },
                },
            }
        )
        calls.append(Call(names[index], arguments, _id(rng, dialect, names[index], index)))
    reasoning = _prose(rng, dialect, "\n") if reads_reasoning and not (bare and calls) else ""
    content = "" if bare and calls else _prose(rng, dialect, "\n")
    if bare or not reasoning:
        content = content.lstrip(" \t\r\n{") if bare else content
    # An id that comes after the arguments comes too late.
    late = calls_form is not None and calls_form.ids == "member"
    ids = [None if late else call.id for call in calls]
    text = render(dialect, reasoning=reasoning, content=content, calls=calls)
    return Answer(text, reasoning, content, calls, ArgumentTypes(tools), ids)


def _id(rng: random.Random, dialect: Dialect, name: str, index: int) -> str | None:
    match dialect.calls.ids if dialect.calls is not None else "unwritten":
        case "functions":
            return f"functions.{name}:{index + rng.randrange(3)}"
        case "call_id" | "member":
            return "".join(rng.choices("abcXYZ019", k=9)) if rng.random() < 0.8 else None
        case _:
            return None


def soup(rng: random.Random, dialect: Dialect) -> str:
    """Whole markers and pieces of them in any order, sometimes after the beginning of a true call."""
    pieces, _, _ = _shape(dialect)
    whole = [*dialect.tokens, '{"name": "f", ', '"arguments": {', "read", "\n"]
    if dialect.calls is not None:
        form = dialect.calls
        whole += [form.open, form.close, form.name_close]
        if form.section is not None:
            whole += [form.section.open, form.section.close]
        if isinstance(form.arguments, Elements):
            own = form.arguments
            whole += [own.open, own.key_close, own.value_open, own.close]
    if dialect.channels is not None:
        whole += ["<|start|>assistant", "analysis", " to=functions.f", "commentary", "final"]
    text = "".join(rng.choices(pieces, k=rng.randrange(12))) if rng.random() < 0.3 else ""
    text += "".join(rng.choice(whole if rng.random() < 0.7 else pieces) for _ in range(rng.randrange(24)))
    if rng.random() < 0.3:
        answer = make(rng, dialect).text
        at = rng.randrange(len(answer) + 1)
        text = answer[:at] + text + (answer[at:] if rng.random() < 0.5 else "")
    return text


def check_answer(seed: int, dialect: Dialect) -> None:
    """Read an answer whole, in pieces, and cut short."""
    rng = random.Random(seed)
    answer = make(rng, dialect)
    assert parse(dialect, answer.text, answer.types) == answer.events
    assert parse(dialect, answer.text, answer.types, cuts_of(rng, answer.text)) == answer.events
    check_truncated(rng, dialect, answer)


def check_truncated(rng: random.Random, dialect: Dialect, answer: Answer) -> None:
    """What is read of a beginning is a beginning of what is read of the whole."""
    text = answer.text[: rng.randrange(len(answer.text) + 1)]
    events = parse(dialect, text, answer.types)
    assert parse(dialect, text, answer.types, cuts_of(rng, text)) == events
    starts = [event for event in events if isinstance(event, CallStart)]
    statuses = [event.status for event in events if isinstance(event, CallEnd)]
    assert len(statuses) == len(starts) <= len(answer.calls)
    for start, status in zip(starts, statuses, strict=True):
        call = answer.calls[start.index]
        given = "".join(e.text for e in events if isinstance(e, ArgumentsDelta) and e.index == start.index)
        assert start.name == call.name
        assert written(call).startswith(given)
        assert (
            status == "complete"
            if given == written(call) and status != "truncated"
            else status == "truncated"
        )
    assert all(status == "complete" for status in statuses[:-1])
    for kind, whole in ((Reasoning, answer.reasoning), (Content, answer.content)):
        given = "".join(event.text for event in events if isinstance(event, kind))
        # Past its end there may be the beginning of a marker.
        assert whole.startswith(given) or given.startswith(whole) or answer.text.startswith(given)


def check_soup(seed: int, dialect: Dialect) -> None:
    """Any text: equal events for every cutting, and events in order."""
    rng = random.Random(seed)
    text = soup(rng, dialect)
    types = ArgumentTypes()
    options = {"in_reasoning": rng.random() < 0.3, "calls": rng.random() < 0.9}
    events = parse(dialect, text, types, **options)
    assert parse(dialect, text, types, cuts_of(rng, text), **options) == events
    check_order(events)


def check_order(events: list[Event]) -> None:
    """Calls count from 0 and hold nothing but their arguments."""
    count, within = 0, False
    for event in events:
        match event:
            case CallStart():
                assert not within
                assert event.index == count
                within = True
            case ArgumentsDelta():
                assert within
                assert event.index == count
            case CallEnd():
                assert within
                assert event.index == count
                within, count = False, count + 1
            case _:
                assert not within
    assert not within


CHECKS: list[Callable[[int, Dialect], None]] = [check_answer, check_soup]


def main(words: list[str]) -> None:
    """`python tests/null/text/answers.py CASES [DIALECT ...]`: half of the cases answers, half any text."""
    for name in words[1:] or FAMILIES:
        started_s, failures = time.monotonic(), 0
        for seed in range(int(words[0])):
            check = CHECKS[seed % len(CHECKS)]
            try:
                check(seed, FAMILIES[name])
            except Exception as error:  # noqa: BLE001  (each is printed)
                failures += 1
                print(f"{name}: {check.__name__}({seed}): {type(error).__name__} {error}", flush=True)
        seconds = time.monotonic() - started_s
        print(f"{name}: {words[0]} cases, {failures} failures, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
