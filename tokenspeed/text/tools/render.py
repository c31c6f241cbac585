# SPDX-License-Identifier: MIT
"""An answer in the text of a dialect: what its templates write and its models were taught to write.

In: reasoning, content and calls. Out: text from which the parser reads the same again. Prompts are rendered by
the checkpoint's own template, never by this; it serves recognition of templates, tests and transcripts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokenspeed.text.tools import ids
from tokenspeed.text.tools.spec import CallFormat, Channels, Dialect, Elements, Envelope

_PYTHON_WORDS: Final = {"true": "True", "false": "False", "null": "None"}


@dataclass(frozen=True, slots=True)
class Call:
    """A call to be written."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


def render(dialect: Dialect, *, reasoning: str = "", content: str = "", calls: Sequence[Call] = ()) -> str:
    """The text of an answer, from where the prompt ends to where a stop token would come."""
    if dialect.channels is not None:
        return _render_channels(dialect.channels, reasoning, content, calls)
    text = ""
    if reasoning and dialect.reasoning is not None:
        form = dialect.reasoning
        inside, after = "\n" * min(form.newlines_inside, 1), "\n" * min(form.newlines_after, 2)
        text = f"{form.open}{inside}{reasoning}{inside}{form.close}{after}"
    text += content
    if calls and dialect.calls is not None:
        text += "\n" * dialect.calls.newlines_before if content else ""
        text += render_calls(dialect.calls, calls)
    return text


def render_calls(form: CallFormat, calls: Sequence[Call]) -> str:
    """The calls of one answer."""
    texts = [_render_call(form, call, index) for index, call in enumerate(calls)]
    section = form.section
    if section is None or section.omitted == "usual":
        return form.joint.join(texts)
    if section.each:
        return form.joint.join(section.open + text + section.close for text in texts)
    return section.open + form.joint.join(texts) + section.close


def _render_call(form: CallFormat, call: Call, index: int) -> str:
    match form.arguments:
        case Envelope(name_key, arguments_key):
            members: dict[str, Any] = {name_key: call.name, arguments_key: call.arguments}
            members |= {"id": call.id} if form.ids == "member" and call.id else {}
            return form.open + _json(members) + form.close
        case Elements():
            body = "".join(_render_element(form.arguments, *item) for item in call.arguments.items())
        case _:
            body = _json(call.arguments)
    head = call.name
    if form.ids == "functions":
        head = ids.head_of(call.name, call.id, index)
    elif form.ids == "call_id" and call.id:
        head = f"{call.name}[CALL_ID]{call.id}"
    return form.open + head + form.name_close + body + form.close


def _render_element(form: Elements, key: str, value: Any) -> str:
    is_text = isinstance(value, str)
    text: str = value if isinstance(value, str) else _json(value)
    if form.python_words and not is_text:
        text = _PYTHON_WORDS.get(text, text)
    opener = form.json_open if form.json_open is not None and not is_text else form.value_open
    return f"{form.open}{key}{form.key_close}{opener}{form.padding}{text}{form.padding}{form.close}"


def _render_channels(form: Channels, reasoning: str, content: str, calls: Sequence[Call]) -> str:
    messages: list[str] = []
    if reasoning:
        messages.append(f"{form.channel}{form.reasoning}{form.message}{reasoning}{form.end}")
    if content and calls:
        messages.append(f"{form.channel}{form.preamble}{form.message}{content}{form.end}")
    elif content:
        messages.append(f"{form.channel}{form.content}{form.message}{content}")
    messages += [
        f" {form.recipient}{form.namespace}{call.name}{form.channel}{form.preamble} json{form.message}"
        f"{_json(call.arguments)}{form.call_end}"
        for call in calls
    ]
    return (form.start + form.role).join(messages)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
