# SPDX-License-Identifier: MIT
"""What a request wants becomes a grammar: what it takes, what it does not, what is refused before it is made."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from tokenspeed.base.errors import RequestError
from tokenspeed.text.grammar import (
    AnyJson,
    Choice,
    Grammar,
    JsonSchema,
    Regex,
    ToolOffer,
    Wanted,
    constraint_for,
)
from tokenspeed.text.grammar.matcher import COMPILED_MAX, Checked, Compiler, Vocabulary, Walk, compiled
from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.render import Call, render
from tokenspeed.text.tools.spec import PLAIN, Dialect

BYTES = Vocabulary([bytes([i]) for i in range(256)])
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "lines": {"type": "array", "items": {"type": "integer"}},
        "mode": {"type": "string", "enum": ["r", "w"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "deep": {"type": "boolean"},
    },
    "required": ["path"],
}
TOOLS = (ToolOffer("read", SCHEMA, True), ToolOffer("stop_it", None))
CALLS = [
    [
        Call(
            "read", {"path": "/a b", "lines": [1, 2], "mode": "w", "note": "x <b>", "deep": True}, "abcdefghi"
        )
    ],
    [Call("stop_it", {}, "abcdefghi")],
]


def takes(dialect: Dialect, wanted: Wanted, text: str) -> bool:
    """Whether a text is a whole sentence."""
    constraint = constraint_for(dialect, wanted)
    assert constraint is not None
    Checked().check(constraint)
    walk = Walk(compiled(constraint, BYTES))
    return all(walk.take(byte) for byte in text.encode()) and walk.matcher.is_accepting()


def shown(dialect: Dialect, calls: list[Call], **around: str) -> str:
    """An answer as the model is taught to write it, up to the token that ends it."""
    named = [Call(c.name, c.arguments, None if dialect.name == "kimi_k2" else c.id) for c in calls]
    text = render(dialect, calls=named, **around)
    return text.removesuffix(dialect.channels.call_end) if dialect.channels is not None else text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("calls", CALLS)
def test_what_a_family_renders_is_a_sentence(name: str, calls: list[Call]) -> None:
    dialect = FAMILIES[name]
    forced = Wanted(tools=TOOLS, choice="required")
    assert takes(dialect, forced, shown(dialect, calls))
    assert takes(dialect, Wanted(tools=TOOLS, named=calls[0].name), shown(dialect, calls))
    assert takes(dialect, Wanted(tools=TOOLS), shown(dialect, calls))
    assert takes(dialect, Wanted(tools=TOOLS, format=AnyJson()), shown(dialect, calls))
    if dialect.reasoning is not None or dialect.channels is not None:
        assert takes(dialect, forced, shown(dialect, calls, reasoning="Let me <see> {"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_of_another_tool_is_none(name: str) -> None:
    dialect = FAMILIES[name]
    other = shown(dialect, [Call("write", {"path": "a"}, "abcdefghi")])
    bad = shown(dialect, [Call("read", {"path": "a", "mode": "x"}, "abcdefghi")])
    for text in (other, bad):
        assert not takes(dialect, Wanted(tools=TOOLS, choice="required"), text)
        assert not takes(dialect, Wanted(tools=TOOLS), text)
    assert not takes(dialect, Wanted(tools=TOOLS, named="stop_it"), shown(dialect, CALLS[0]))


@pytest.mark.parametrize("name", FAMILIES)
def test_free_text_stays_free_beside_strict_tools(name: str) -> None:
    dialect = FAMILIES[name]
    for text in ("", "Hello. 2 < 3 [x] é\n"):
        assert (
            takes(dialect, Wanted(tools=TOOLS), render(dialect, content=text) if text else text) or not text
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_goes_on_in_the_reasoning_that_its_prompt_opened(name: str) -> None:
    dialect = FAMILIES[name]
    if dialect.reasoning is None:
        pytest.skip("no reasoning between markers")
    wanted = Wanted(tools=TOOLS, choice="required", in_reasoning=True)
    call = shown(dialect, CALLS[0])
    assert takes(dialect, wanted, f"So.{dialect.reasoning.close}{call}")
    assert takes(dialect, wanted, f"So.{call}") == (
        dialect.calls is not None and dialect.calls.ends_reasoning
    )


def test_several_calls_only_where_they_are_wanted() -> None:
    for name in ("hermes", "kimi_k2", "qwen3_coder", "mistral_args"):
        text = shown(FAMILIES[name], [CALLS[0][0], CALLS[1][0]])
        assert takes(FAMILIES[name], Wanted(tools=TOOLS, choice="required"), text)
        assert not takes(FAMILIES[name], Wanted(tools=TOOLS, choice="required", parallel=False), text)


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (AnyJson(), '{"a": [1, {"b": null}]}', "[1]"),
        (AnyJson(), '{\n  "a": 1\n}', '{"a":  1}'),
        (JsonSchema(SCHEMA), '{"path": "x", "mode": "r"}', '{"path": "x", "mode": "q"}'),
        (Regex("^a+(/b)?$"), "aa/b", "ab"),
        (Regex("a|b"), "b", "ab"),
        (Choice(("yes", "no way")), "no way", "no"),
        (Grammar('start: "a" B+\nB: /[0-9]/'), "a12", "a"),
    ],
)
def test_a_format_is_the_whole_answer(form: Any, good: str, bad: str) -> None:
    assert takes(PLAIN, Wanted(format=form), good)
    assert not takes(PLAIN, Wanted(format=form), bad)
    assert takes(FAMILIES["hermes"], Wanted(format=form), f"<think>\nhm {{\n</think>\n\n{good}")
    assert not takes(FAMILIES["hermes"], Wanted(format=form), good + " ")


def test_without_a_wish_there_is_no_grammar() -> None:
    assert constraint_for(PLAIN, Wanted()) is None
    assert constraint_for(FAMILIES["hermes"], Wanted(tools=[ToolOffer("f", SCHEMA)])) is None


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


CHAIN = {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}}


@pytest.mark.parametrize(
    ("wanted", "param", "words"),
    [
        (Wanted(choice="required"), "tool_choice", "no tool"),
        (Wanted(named="x", tools=TOOLS), "tool_choice", "'x'"),
        (Wanted(format=JsonSchema({"enum": ["x" * (128 << 10)]})), "response_format", "bytes"),
        (Wanted(format=JsonSchema(deep(64))), "response_format", "nesting"),
        (Wanted(format=JsonSchema(CHAIN)), "response_format", "references"),
        (Wanted(format=JsonSchema({"maxItems": 10**6})), "response_format", "maxItems"),
        (Wanted(format=JsonSchema({"pattern": "(" * 65})), "response_format", "nesting"),
        (Wanted(format=Regex("a" * 8193)), "response_format", "characters"),
        (Wanted(format=Regex("(" * 65 + ")" * 65)), "response_format", "nesting"),
        (Wanted(format=Regex("")), "response_format", "empty"),
        (Wanted(format=Choice(())), "response_format", "at least one"),
        (Wanted(format=Choice(("x",) * 1025)), "response_format", "1025"),
        (Wanted(format=Grammar("\n".join(f"r{i}: r{i + 1}" for i in range(600)))), "response_format", "lines"),
        (Wanted(tools=[ToolOffer("a<b", None)], choice="required"), "tools", "name"),
        (Wanted(tools=[ToolOffer("f", deep(64), param="tools[0].x")], choice="required"), "tools[0].x", "nesting"),
    ],
)  # fmt: skip
def test_what_is_too_much_is_refused_before_work(wanted: Wanted, param: str, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        constraint_for(FAMILIES["qwen3_coder"], wanted)
    assert refused.value.param == param
    assert words in refused.value.message


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(format=JsonSchema({"type": "object", "properties": {"a": {"not": {}}}})),
        Wanted(format=JsonSchema({"type": "nonsense"})),
        Wanted(format=Regex(r"(?=a)b")),
        Wanted(format=Grammar("start: missing")),
        Wanted(format=Grammar("start start start")),
        Wanted(tools=[ToolOffer("f", {"type": "object", "properties": {"a": {"uniqueItems": True}}}, True)]),
    ],
)  # fmt: skip
def test_what_does_not_compile_names_its_field(wanted: Wanted) -> None:
    constraint = constraint_for(FAMILIES["hermes"], wanted)
    assert constraint is not None
    with pytest.raises(RequestError) as refused:
        Checked().check(constraint)
    assert refused.value.param == constraint.param


def test_strict_refuses_what_elements_cannot_say_and_others_pass_over_it() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"allOf": [{"type": "string"}]}},
        "anyOf": [{"required": ["a"]}],
    }
    with pytest.raises(RequestError) as refused:
        constraint_for(FAMILIES["qwen3_coder"], Wanted(tools=[ToolOffer("f", schema, True, "tools[3].x")]))
    assert refused.value.param == "tools[3].x"
    assert takes(
        FAMILIES["qwen3_coder"],
        Wanted(tools=[ToolOffer("f", schema)], choice="required"),
        shown(FAMILIES["qwen3_coder"], [Call("f", {"a": "b"})]),
    )


def test_digits_of_a_schema_are_those_of_ascii() -> None:
    dialect = FAMILIES["qwen3_coder"]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": r"^[\d.]+/\d$"}},
        "required": ["a"],
    }
    wanted = Wanted(tools=[ToolOffer("f", schema, True)], choice="required")
    assert takes(dialect, wanted, shown(dialect, [Call("f", {"a": "1.2/3"})]))
    assert not takes(dialect, wanted, shown(dialect, [Call("f", {"a": "\u0667/3"})]))


def test_compiled_grammars_are_kept_by_content_and_bounded() -> None:
    vocabulary: Future[Vocabulary] = Future()
    vocabulary.set_result(BYTES)
    compiler = Compiler(vocabulary)
    constraints = [
        constraint_for(PLAIN, Wanted(format=Regex(f"a{{{i + 1}}}"))) for i in range(COMPILED_MAX + 1)
    ]
    for constraint in constraints:
        assert constraint is not None
        one = compiler.start(constraint).result()
        assert one.take(ord("a"))
    assert constraints[-1] is not None
    again = compiler.start(constraints[-1])
    assert again.done()  # known, so nothing was queued; and its walk begins anew
    assert again.result().take(ord("a"))
    compiler.close()
