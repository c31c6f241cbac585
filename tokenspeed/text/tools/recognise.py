# SPDX-License-Identifier: MIT
"""Which dialect a checkpoint speaks, and why: read off what its own template writes, never off its name.

In: the chat template, the tokenizer's configuration, what the operator said. Out: a `Choice` whose reasons are
logged. In this order:

1. the operator's word;
2. the template is given a call to write: the dialect is the one that writes it so, or else that reads it back;
3. the configuration's `response_template`, then the template's source: the dialect whose signs they hold.

A template that none of these explains has no dialect, and tools are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from tokenspeed.base.errors import RequestError, SetupError
from tokenspeed.text.chat_template import ChatTemplate
from tokenspeed.text.events import ArgumentsDelta, CallStart, Event
from tokenspeed.text.tools.families import FAMILIES, REASONING, THINK
from tokenspeed.text.tools.parser import OutputParser
from tokenspeed.text.tools.render import Call, render
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import PLAIN, Dialect, ReasoningFormat

AUTO: Final = "auto"
NONE: Final = "none"
_CALL: Final = Call("probe_a7", {"path": "a/b.py", "lines": [1, 2]}, id="probe0007")
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": _CALL.name,
        "description": "Probe.",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "A path."},
                "lines": {"type": "array", "items": {"type": "integer"}, "description": "Lines."},
            },
            "required": ["path"],
        },
    },
}
_TYPES: Final = ArgumentTypes([_TOOL])
_IDS: Final = (
    _CALL.id,
    f"functions.{_CALL.name}:0",
)  # some templates take one kind only, some write the other


@dataclass(frozen=True, slots=True)
class Choice:
    """A dialect and the reasons for its two halves."""

    dialect: Dialect
    calls_reason: str
    reasoning_reason: str


def choose(
    template: ChatTemplate | None,
    config: dict[str, Any],
    *,
    tool_call_parser: str = AUTO,
    reasoning_parser: str = AUTO,
) -> Choice:
    """Choose for one checkpoint; `SetupError` for a name that is none."""
    _check("tool-call-parser", tool_call_parser, FAMILIES)
    _check("reasoning-parser", reasoning_parser, REASONING)
    if tool_call_parser == NONE:
        family, calls_reason = PLAIN, "--tool-call-parser none"
    elif tool_call_parser != AUTO:
        family, calls_reason = FAMILIES[tool_call_parser], f"--tool-call-parser {tool_call_parser}"
    else:
        family, calls_reason = _family(template, config)
    if reasoning_parser == NONE:
        reasoning, reason = None, "--reasoning-parser none"
    elif reasoning_parser != AUTO:
        reasoning, reason = REASONING[reasoning_parser], f"--reasoning-parser {reasoning_parser}"
    else:
        reasoning, reason = _reasoning(template, family)
    return Choice(replace(family, reasoning=reasoning), calls_reason, reason)


def _family(template: ChatTemplate | None, config: dict[str, Any]) -> tuple[Dialect, str]:
    if template is None:
        return PLAIN, "there is no chat template"
    for call_id in _IDS:
        written = _written_by(template, call_id)
        readers = [dialect for dialect in FAMILIES.values() if written and _reads_back(dialect, written)]
        for dialect in readers:
            if render(dialect, calls=[replace(_CALL, id=call_id)]).strip() in written:
                return dialect, "the chat template writes a call so"
        if readers:
            return readers[0], "a call that the chat template writes reads back so"
    response_template = config.get("response_template")
    for text, what in (
        (msgspec.json.encode(response_template).decode() if response_template else "", "response_template"),
        (template.source, "chat template"),
    ):
        for dialect in FAMILIES.values():
            if text and _bears_signs(dialect, text):
                return dialect, f"the {what} holds {', '.join(dialect.signs)}"
    return PLAIN, "no known way of writing calls is in the chat template"


def _written_by(template: ChatTemplate, call_id: str | None) -> str:
    """What a template writes for an answer that is a call, after its generation prompt; empty if it refuses."""
    asked = [{"role": "user", "content": "x"}]
    function = {"name": _CALL.name, "arguments": _CALL.arguments}
    call = {"id": call_id, "type": "function", "function": function}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        prompt = template.render(asked, tools=[_TOOL])
        whole = template.render([*asked, answer], tools=[_TOOL], add_generation_prompt=False)
    except RequestError:
        return ""
    shared = next(
        (at for at, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]), None
    )
    return whole[len(prompt) if shared is None else shared :]


def _reads_back(dialect: Dialect, written: str) -> bool:
    """Whether the parser finds the very call in what the template wrote."""
    parser = OutputParser(replace(dialect, reasoning=None), types=_TYPES)
    events: list[Event] = parser.feed(written) + parser.flush()
    started = [event for event in events if isinstance(event, CallStart)]
    arguments = "".join(event.text for event in events if isinstance(event, ArgumentsDelta))
    try:
        return [event.name for event in started] == [_CALL.name] and (
            msgspec.json.decode(arguments) == _CALL.arguments
        )
    except msgspec.DecodeError:
        return False


def _bears_signs(dialect: Dialect, text: str) -> bool:
    return all(sign in text for sign in dialect.signs) and not any(sign in text for sign in dialect.unless)


def _reasoning(template: ChatTemplate | None, family: Dialect) -> tuple[ReasoningFormat | None, str]:
    if family.channels is not None:
        return None, "a channel of its own"
    if template is None:
        return None, "there is no chat template"
    # The family's own way first, then any.
    for form in dict.fromkeys((family.reasoning or THINK, *REASONING.values())):
        if form.open in template.source and form.close in template.source:
            return form, f"the chat template holds {form.open} and {form.close}"
    return None, "the chat template holds no known markers"


def _check(flag: str, name: str, known: dict[str, Any]) -> None:
    if name not in (AUTO, NONE, *known):
        raise SetupError(f"--{flag} {name}: it must be {AUTO}, {NONE} or one of {', '.join(known)}")
