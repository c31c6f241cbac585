# SPDX-License-Identifier: MIT
# ruff: noqa: E501  (transcripts)
"""Every dialect: rendering then reading is the identity, every cutting gives equal events, truncation stays true,
and what models really do comes out as something sensible. `answers.py CASES` runs the properties at length."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import fields, replace

import answers
import pytest
import tokenizers

from tokenspeed.engine.source import BUNDLED
from tokenspeed.text.events import ArgumentsDelta, CallEnd, CallStart, Content, Event, Reasoning, merged
from tokenspeed.text.output import OutputOptions, OutputReader
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.parser import OutputParser
from tokenspeed.text.tools.render import Call, render
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import Dialect, parts

CASES = 60
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "edit",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "line": {"type": "integer"},
                    "all": {"type": "boolean"},
                    "ratio": {"type": ["number", "null"]},
                    "size": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                    "spans": {"$ref": "#/$defs/spans"},
                    "meta": {"allOf": [{"type": "object"}]},
                    "mode": {"enum": ["a", "b"]},
                },
                "$defs": {"spans": {"type": "array", "items": {"type": "integer"}}},
            },
        },
    }
]
TYPES = ArgumentTypes(TOOLS)


def read(name: str, text: str, **options: bool) -> list[Event]:
    """The events of a text, the same fed whole and character by character."""
    whole = answers.parse(FAMILIES[name], text, TYPES, **options)
    assert answers.parse(FAMILIES[name], text, TYPES, list(range(1, len(text))), **options) == whole
    return whole


def call(
    index: int, name: str, arguments: str, status: str = "complete", call_id: str | None = None
) -> list[Event]:
    body = [ArgumentsDelta(index, arguments)] if arguments else []
    return [CallStart(index, name, call_id), *body, CallEnd(index, status)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("check", answers.CHECKS)
def test_properties_hold(name, check):
    for seed in range(CASES):
        check(seed, FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_beginning_of_an_answer_is_read_truly(name):
    dialect = FAMILIES[name]
    arguments = {"path": "a </parameter> b\n", "line": 3, "spans": [1, {"x": "}"}], "é": "你"}
    content = "" if name == "llama3" else "So: a < b."
    reasoning = "Hm.\n\nYes" if dialect.reasoning or dialect.channels else ""
    calls = [Call("edit", arguments)] * (1 if name == "llama3" else 2)
    text = render(dialect, reasoning=reasoning, content=content, calls=calls)
    whole = "".join(e.text for e in read(name, text) if isinstance(e, ArgumentsDelta) and e.index == 0)
    assert json.loads(whole) == arguments
    for length in range(len(text)):
        events = read(name, text[:length])
        statuses = [event.status for event in events if isinstance(event, CallEnd)]
        given = "".join(e.text for e in events if isinstance(e, ArgumentsDelta) and e.index == 0)
        assert whole.startswith(given)
        assert statuses in ([], ["truncated"], ["complete"], ["complete", "truncated"], ["complete"] * 2)
        assert (given == whole) or "complete" not in statuses


@pytest.mark.parametrize("name", FAMILIES)
def test_events_do_not_depend_on_token_boundaries(name):
    tokenizer = Tokenizer.load(BUNDLED)
    by_byte = {
        tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1
    }
    for seed in range(4):
        rng = random.Random(seed)
        answer = answers.make(rng, FAMILIES[name])
        options = OutputOptions(
            dialect=FAMILIES[name], calls=True, types=answer.types, skip_special_tokens=False
        )
        spellings = [
            tokenizer.encode(answer.text, add_special_tokens=False),
            [by_byte[bytes([byte])] for byte in answer.text.encode()],
        ]
        for ids, step in itertools.product(spellings, (1, 3)):
            reader = OutputReader(tokenizer, options)
            events: list[Event] = []
            for at in range(0, len(ids), step):
                events += reader.feed(ids[at : at + step])
            events = merged(events + reader.feed([], "length"))
            bare = [CallStart(e.index, e.name) if isinstance(e, CallStart) else e for e in events]
            assert bare == [
                CallStart(e.index, e.name) if isinstance(e, CallStart) else e for e in answer.events
            ]
            assert all(event.id for event in events if isinstance(event, CallStart))


@pytest.mark.parametrize("name", FAMILIES)
def test_markers_are_read_where_the_vocabulary_calls_them_special(name, model_directory):
    dialect = FAMILIES[name]
    backend = tokenizers.Tokenizer.from_file(str(model_directory / "tokenizer.json"))
    backend.add_tokens([tokenizers.AddedToken(token, special=True) for token in dialect.tokens])
    tokenizer = Tokenizer(backend, {})
    answer = next(
        a for a in map(_answer_of(dialect), range(99)) if len(a.calls) == (1 if name == "llama3" else 2)
    )
    ids = tokenizer.encode(answer.text + "<|im_start|>", add_special_tokens=False)
    assert tokenizer.special_ids & set(ids[:-1]) or name == "llama3"
    reader = OutputReader(tokenizer, OutputOptions(dialect=dialect, calls=True, types=answer.types))
    events = merged([event for i in ids for event in reader.feed([i])] + reader.feed([], "length"))
    assert [replace(e, id=None) if isinstance(e, CallStart) else e for e in events] == [
        replace(e, id=None) if isinstance(e, CallStart) else e for e in answer.events
    ]


def _answer_of(dialect: Dialect) -> Callable[[int], answers.Answer]:
    return lambda seed: answers.make(random.Random(seed), dialect)


EDIT = '{"path": "a.py", "line": 3}'
K_CALL = "<|tool_call_begin|>functions.edit:"
K_ARGS = "<|tool_call_argument_begin|>"
K_OPEN, K_CLOSE = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
D_OPEN, D_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # Types of bare values.
        ("qwen3_coder", "<tool_call>\n<function=edit>\n<parameter=path>\n5\n</parameter>\n<parameter=line>\n5\n"
         "</parameter>\n<parameter=all>\nTrue\n</parameter>\n<parameter=ratio>\nnull\n</parameter>\n</function>\n"
         "</tool_call>",
         call(0, "edit", '{"path": "5", "line": 5, "all": true, "ratio": null}')),
        ("glm45", "<tool_call>edit\n<arg_key>size</arg_key>\n<arg_value>12</arg_value>\n<arg_key>spans</arg_key>\n"
         '<arg_value>[1, 2]</arg_value>\n<arg_key>meta</arg_key>\n<arg_value>{"a": "b"}</arg_value>\n</tool_call>',
         call(0, "edit", '{"size": 12, "spans": [1, 2], "meta": {"a": "b"}}')),
        ("glm47", "<tool_call>edit<arg_key>size</arg_key><arg_value>12 cm</arg_value><arg_key>mode</arg_key>"
         "<arg_value>1</arg_value><arg_key>line</arg_key><arg_value>many</arg_value><arg_key>unknown</arg_key>"
         "<arg_value>{}</arg_value></tool_call>",
         call(0, "edit", '{"size": "12 cm", "mode": "1", "line": "many", "unknown": "{}"}')),
        ("minimax_m2", '<minimax:tool_call>\n<invoke name="other">\n<parameter name="line">3</parameter>\n</invoke>\n'
         "</minimax:tool_call>", call(0, "other", '{"line": "3"}')),
        ("deepseek_v32", '<｜DSML｜function_calls>\n<｜DSML｜invoke name="edit">\n<｜DSML｜parameter name="path" '
         'string="false">7</｜DSML｜parameter>\n<｜DSML｜parameter name="line" string="true">7</｜DSML｜parameter>\n'
         "</｜DSML｜invoke>\n</｜DSML｜function_calls>", call(0, "edit", '{"path": 7, "line": "7"}')),
        # No arguments.
        ("qwen3_coder", "<tool_call>\n<function=edit>\n</function>\n</tool_call>", call(0, "edit", "{}")),
        ("glm47", "<tool_call>edit</tool_call>", call(0, "edit", "{}")),
        ("kimi_k2", f"{K_OPEN}{K_CALL}0{K_ARGS}<|tool_call_end|>{K_CLOSE}",
         call(0, "edit", "{}", call_id="functions.edit:0")),
        ("harmony", "<|channel|>commentary to=functions.edit <|constrain|>json<|message|><|call|>", call(0, "edit", "{}")),
        # Values that quote the markup they stand in.
        ("qwen3_coder", "<tool_call>\n<function=edit>\n<parameter=path>\n</parameter>\nx</function>\n\n</parameter>\n"
         "</function>\n</tool_call>", call(0, "edit", '{"path": "</parameter>\\nx</function>\\n"}')),
        ("kimi_k2", f"{K_OPEN}{K_CALL}0{K_ARGS}"
         f'{{"path": "<|tool_call_end|>"}}<|tool_call_end|>{K_CLOSE}',
         call(0, "edit", '{"path": "<|tool_call_end|>"}', call_id="functions.edit:0")),
        # Markers forgotten.
        ("qwen3_coder", "Now.\n\n<function=edit>\n<parameter=path>\na.py\n</parameter>\n</function>\n</tool_call>",
         [Content("Now."), *call(0, "edit", '{"path": "a.py"}')]),
        ("qwen3_coder", "<tool_call>\n<function=edit>\n<parameter=path>\na.py\n</parameter>\n</tool_call>",
         call(0, "edit", '{"path": "a.py"}')),
        ("kimi_k2", f"{K_CALL}3{K_ARGS}{EDIT}<|tool_call_end|>",
         call(0, "edit", EDIT, call_id="functions.edit:3")),
        ("kimi_k2", f"{K_OPEN}<|tool_call_begin|>edit{K_ARGS}{EDIT}<|tool_call_end|>{K_CLOSE}.",
         [*call(0, "edit", EDIT, call_id="edit"), Content(".")]),
        ("deepseek_v31", f"<think>go{D_OPEN}<｜tool▁call▁begin｜>edit<｜tool▁sep｜>{EDIT}<｜tool▁call▁end｜>{D_CLOSE}",
         [Reasoning("go"), *call(0, "edit", EDIT)]),
        ("kimi_k2", f"<think>go{K_OPEN}{K_CALL}0{K_ARGS}{EDIT}<|tool_call_end|>{K_CLOSE}ok",
         [Reasoning("go"), *call(0, "edit", EDIT, call_id="functions.edit:0"), Content("ok")]),
        ("kimi_k2", f"<think>go {K_OPEN} on</think>ok", [Reasoning(f"go {K_OPEN} on"), Content("ok")]),
        ("hermes", f'<tool_call>\n{{"name": "edit", "arguments": {EDIT}\n</tool_call>ok',
         [*call(0, "edit", EDIT), Content("ok")]),
        ("hermes", '<tool_call>\n{"name": "edit", "arguments": {"path": "a"\n</tool_call>\n<tool_call>\n{"name": "edit"}\n'
         "</tool_call>", [*call(0, "edit", '{"path": "a"\n', "malformed"), *call(1, "edit", "{}")]),
        # Blanks looked past have a bound.
        ("glm47", f"<tool_call>edit<arg_key>path</arg_key><arg_value>a</arg_value>{' ' * 90}</tool_call>",
         call(0, "edit", '{"path": "a</arg_value>' + " " * 90 + "</tool_call>", "truncated")),
        ("glm47", f"<tool_call>edit<arg_key>path</arg_key><arg_value>a</arg_value>{' ' * 60}</tool_call>",
         call(0, "edit", '{"path": "a"}')),
        ("hermes", "\n" * 90 + "<think>a</think>", [Content("\n" * 90 + "<think>a</think>")]),
        # Broken arguments.
        ("kimi_k2", f"{K_OPEN}{K_CALL}0{K_ARGS}path=a<|tool_call_end|>"
         f"{K_CALL}1{K_ARGS}{EDIT}<|tool_call_end|>{K_CLOSE}",
         [*call(0, "edit", "path=a", "malformed", "functions.edit:0"), *call(1, "edit", EDIT, call_id="functions.edit:1")]),
        ("deepseek_v3", f"{D_OPEN}<｜tool▁call▁begin｜>function<｜tool▁sep｜>edit\n```json\n{{\"a\": 1\n```<｜tool▁call▁end｜>"
         f"{D_CLOSE}", call(0, "edit", '{"a": 1\n', "malformed")),
        ("qwen3_coder", "<tool_call>\n<function=edit>\n<parameter=path>\na\n</parameter>\nwell</function>\n</tool_call>",
         call(0, "edit", '{"path": "a\\n</parameter>\\nwell</function>\\n</tool_call>', "truncated")),
        ("minimax_m2", '<minimax:tool_call>\n<invoke name="edit">\n<parameter name=path>a</parameter>\n</invoke>\n',
         [*call(0, "edit", "", "malformed"), Content("<parameter name=path>a</parameter>\n</invoke>\n")]),
        # Not calls at all.
        ("glm45", "<tool_call>two words</tool_call>", [Content("<tool_call>two words</tool_call>")]),
        ("qwen3_coder", "the `<tool_call>` tag", [Content("the `<tool_call>` tag")]),
        ("kimi_k2", f"{K_OPEN}nothing", [Content(f"{K_OPEN}nothing")]),
        ("mistral", "[TOOL_CALLS] no list", [Content("[TOOL_CALLS] no list")]),
        ("mistral_args", "[TOOL_CALLS]edit[ARGS]7", [*call(0, "edit", "", "malformed"), Content("7")]),
        # Llama: a brace begins a call only where the answer begins, and only of that shape.
        ("llama3", '{"name": "edit", "parameters": {"line": 3}}', call(0, "edit", '{"line": 3}')),
        ("llama3", '<|python_tag|>{"type": "function", "name": "edit", "parameters": {}}', call(0, "edit", "{}")),
        ("llama3", '{"answer": {"name": "edit", "parameters": {}}}',
         [Content('{"answer": {"name": "edit", "parameters": {}}}')]),
        ("llama3", 'So: {"name": "edit", "parameters": {}}', [Content('So: {"name": "edit", "parameters": {}}')]),
        ("llama3", '<|python_tag|>print("x")', [Content('<|python_tag|>print("x")')]),
        # Mistral, both ages.
        ("mistral", '[TOOL_CALLS][{"name": "edit", "arguments": {}, "id": "abcdefgh9"}, {"id": "000000001", "name": "x", '
         '"arguments": {}}]', [*call(0, "edit", "{}"), *call(1, "x", "{}", call_id="000000001")]),
        ("mistral_args", f"Hi[TOOL_CALLS]edit[CALL_ID]abcdefgh9[ARGS]{EDIT}[TOOL_CALLS]x[ARGS]{{}}",
         [Content("Hi"), *call(0, "edit", EDIT, call_id="abcdefgh9"), *call(1, "x", "{}")]),
        # Interleaved thinking.
        ("minimax_m2", "<think>\na\n</think>\n\nb\n<think>\nc\n</think>\n\nd",
         [Reasoning("a"), Content("b"), Reasoning("c"), Content("d")]),
        ("kimi_k2", "<think>a\n</think>\nb<think>", [Reasoning("a\n"), Content("\nb<think>")]),
        # Channels.
        ("harmony", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
         "<|start|>assistant<|channel|>commentary to=functions.edit <|constrain|>json<|message|>" + EDIT + "<|call|>",
         [Reasoning("a"), Content("b"), *call(0, "edit", EDIT)]),
        ("harmony", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
         "<|start|>assistant<|channel|>final<|message|>c<|return|>", [Reasoning("a\nb"), Content("c")]),
        ("harmony", "<|channel|>commentary to=python<|message|>print(1)<|call|>", call(0, "python", "print(1)", "malformed")),
        ("harmony", "<|channel|>final<|message|>x < y <|en", [Content("x < y <|en")]),
        ("harmony", "<|channel|>anal", []),
        ("harmony", "plain text", [Content("plain text")]),
    ],
)  # fmt: skip
def test_what_models_write(name, text, expected):
    assert read(name, text) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_text_where_none_are_wanted(name):
    dialect = FAMILIES[name]
    text = render(dialect, content="x", calls=[Call("edit", {"path": "a"})])
    events = read(name, text, calls=False)
    assert all(isinstance(event, Content) for event in events)
    if dialect.channels is None:
        assert events == [Content(text)]


def test_reasoning_that_the_prompt_opened_is_read_from_the_first_character():
    assert read("minimax_m2", "so\n</think>\n\nyes", in_reasoning=True) == [Reasoning("so"), Content("yes")]
    assert read("kimi_k2", "\nso</think>yes", in_reasoning=True) == [Reasoning("\nso"), Content("yes")]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("piece", ["\n", " ", "<", "{", "[", "\\"])
def test_what_is_held_back_is_bounded(name, piece):
    parser = OutputParser(FAMILIES[name], types=TYPES)
    told = 0
    for count in range(1, 3000):
        events = parser.feed(piece)
        told += sum(len(e.text) for e in events if isinstance(e, Content | Reasoning | ArgumentsDelta))
        assert count - told < 1024


def test_string_arguments_are_given_out_as_they_come():
    parser = OutputParser(FAMILIES["qwen3_coder"], types=TYPES)
    parser.feed("<tool_call>\n<function=edit>\n<parameter=path>\n")
    assert parser.feed('a"b') == [ArgumentsDelta(0, 'a\\"b')]
    assert parser.feed("\nc<") == [ArgumentsDelta(0, "\\nc")]
    assert parser.feed("d") == [ArgumentsDelta(0, "<d")]


def test_values_of_hostile_schemas_are_strings():
    deep = {"anyOf": [{"$ref": "#/properties/a"}] * 50}
    tools = [
        {"function": {"name": "edit", "parameters": {"properties": {"a": deep, "b": [], "c": {"type": 7}}}}},
        {},
    ]
    types = ArgumentTypes(tools)
    assert [types.of("edit", key) for key in "abcd"] == [frozenset({"string"})] * 4


@pytest.mark.parametrize("name", FAMILIES)
def test_spec_is_consistent(name):
    dialect: Dialect = FAMILIES[name]
    assert dialect.name == name
    assert {field.name for field in fields(dialect)} > {"reasoning", "calls", "channels"}
    calls = dialect.calls
    if calls is not None:
        markers = [
            m for text in (calls.open, calls.section.open if calls.section else "") for m in parts(text)[:1]
        ]
        markers += [dialect.reasoning.open, dialect.reasoning.close] if dialect.reasoning else []
        pairs = itertools.permutations(dict.fromkeys(markers), 2)
        assert not any(longer.startswith(shorter) for longer, shorter in pairs)
