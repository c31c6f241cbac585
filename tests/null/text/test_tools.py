# SPDX-License-Identifier: MIT
"""The output parser: render then parse is the identity, every cutting gives equal events, truncation stays
true."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.text.events import ArgumentsDelta, CallEnd, CallStart, Content, Event, Reasoning, merged
from tokenspeed.text.tools.families import HERMES
from tokenspeed.text.tools.parser import OutputParser

ALPHABET = st.sampled_from(
    ["<", ">", "/", "think", "tool_call", "\n", " ", "a", "{", "}", '"', "\\", "é", "name", ":"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8) | st.just("</tool_call>"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), JSON, max_size=4)
NAMES = st.text(alphabet="abcxyz_.-09", min_size=1, max_size=12)
PROSE = (
    st.text(max_size=30).map(lambda text: text.strip("\n")).filter(lambda t: "<" not in t and t.strip() == t)
)


def parse(text: str, cuts: list[int] | None = None, **options: bool) -> list[Event]:
    parser = OutputParser(HERMES, **options)
    bounds = [0, *sorted({c % (len(text) + 1) for c in cuts or ()}), len(text)]
    events = [event for a, b in itertools.pairwise(bounds) for event in parser.feed(text[a:b])]
    return merged(events + parser.flush())


def call(index: int, name: str, arguments: str, status: str = "complete") -> list[Event]:
    body = [ArgumentsDelta(index, arguments)] if arguments else []
    return [CallStart(index, name), *body, CallEnd(index, status)]  # type: ignore[arg-type]


def render(reasoning: str, content: str, calls: list[tuple[str, str]]) -> str:
    text = f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
    for index, (name, arguments) in enumerate(calls):
        text += "\n" if content or index else ""
        text += f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'
    return text


@given(PROSE, PROSE, st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3), st.lists(st.integers(0), max_size=12))
def test_parser_inverts_rendering_under_every_cutting(reasoning, content, calls, cuts):
    written = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    expected: list[Event] = [Reasoning(reasoning)] if reasoning else []
    expected += [Content(content)] if content else []
    for index, (name, arguments) in enumerate(written):
        expected += call(index, name, arguments)
    assert parse(render(reasoning, content, written), cuts) == expected


@given(st.lists(ALPHABET, max_size=40).map("".join), st.lists(st.integers(0), max_size=12), st.booleans())
def test_parser_gives_equal_events_for_every_cutting_of_any_text(text, cuts, in_reasoning):
    assert parse(text, cuts, in_reasoning=in_reasoning) == parse(text, None, in_reasoning=in_reasoning)


@given(st.lists(ALPHABET, max_size=40).map("".join), st.lists(st.integers(0), max_size=6))
def test_parser_gives_equal_events_for_every_cutting_inside_a_call(text, cuts):
    text = '<tool_call>{"name": "f", "arguments": ' + text
    assert parse(text, cuts) == parse(text)
    assert parse(text, list(range(len(text)))) == parse(text)


@given(st.integers(0, 200))
def test_truncated_call_yields_true_partial_arguments(length):
    arguments = '{"path": "a/b.py", "text": "x = {\\"y\\": 1}\\n</tool_call>"}'
    whole = f'ok\n<tool_call>\n{{"name": "write", "arguments": {arguments}}}\n</tool_call>'
    events = parse(whole[:length])
    given_out = "".join(event.text for event in events if isinstance(event, ArgumentsDelta))
    assert arguments.startswith(given_out)
    ends = [event.status for event in events if isinstance(event, CallEnd)]
    complete = length >= whole.index("}\n</tool_call>", whole.index("</tool_call>")) + 1
    assert ends in ([], ["truncated"]) if not complete else ends == ["complete"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("<think>a", [Reasoning("a")]),
        ("<think>a</think>", [Reasoning("a")]),
        ("\n<think>\na\n</think>\n\n  b\n", [Reasoning("a"), Content("  b\n")]),
        ("say <think> aloud", [Content("say <think> aloud")]),
        ("a < b", [Content("a < b")]),
        ("<tool_call>\nnot json", [Content("<tool_call>\nnot json")]),
        ("x\n<tool_call>[1]</tool_call>", [Content("x\n<tool_call>[1]</tool_call>")]),
        ('<tool_call>{"name": 3}</tool_call>', [Content('<tool_call>{"name": 3}</tool_call>')]),
        ('<tool_call>{"name": "f"}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', call(0, "f", '{"a": 1}')),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', call(0, "f", '{"a": 1}')),
        ('<tool_call>{"name": "f", "arguments": {}}}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"name": "f", "arguments": {a}}</tool_call>', call(0, "f", "{a}", "malformed")),
        ('<tool_call>{"name": "f", "arguments": {}} more', [*call(0, "f", "{}"), Content("more")]),
        (
            '<tool_call>{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}</tool_call>',
            [*call(0, "f", "{}"), *call(1, "g", "{}")],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {}}\n{oops}</tool_call>',
            [*call(0, "f", "{}"), Content("{oops}</tool_call>")],
        ),
        ('<tool_call>{"name": "f", "argum', call(0, "f", "", "truncated")),
        ('<tool_call>{"name": "", "arguments": {"a', [Content('<tool_call>{"name": "", "arguments": {"a')]),
        ('<tool_call>{"name": "", "arguments": {}}', [Content('<tool_call>{"name": "", "arguments": {}}')]),
        ('<tool_call>{"nam', [Content('<tool_call>{"nam')]),
    ],
)
def test_parser_on_what_models_do(text, expected):
    assert parse(text) == expected
    assert parse(text, list(range(len(text)))) == expected


@given(st.lists(ALPHABET, max_size=60).map("".join), st.booleans())
def test_calls_are_bracketed_and_text_is_never_invented(text, inside):
    text = '<tool_call>{"name": "f", "arguments": ' + text if inside else text
    events = parse(text)
    open_call = None
    for event in events:
        match event:
            case CallStart(index, _):
                assert open_call is None
                open_call = index
            case ArgumentsDelta(index, _):
                assert open_call == index
            case CallEnd(index, _):
                assert open_call == index
                open_call = None
            case Content(piece) | Reasoning(piece):
                assert open_call is None
                assert piece in text
    assert open_call is None


def test_parser_leaves_calls_alone_when_no_tools_are_offered():
    text = 'a\n<tool_call>{"name": "f"}</tool_call>'
    assert parse(text, calls=False) == [Content(text)]


def test_parser_starts_inside_reasoning_when_the_prompt_opened_it():
    assert parse("\nso\n</think>\n\nyes", in_reasoning=True) == [Reasoning("so"), Content("yes")]


def test_arguments_are_given_out_as_they_come():
    parser = OutputParser(HERMES)
    parser.feed('<tool_call>{"name": "f", "arguments": ')
    assert parser.feed('{"a"') == [CallStart(0, "f"), ArgumentsDelta(0, '{"a"')]
    assert parser.feed(": 1") == [ArgumentsDelta(0, ": 1")]
