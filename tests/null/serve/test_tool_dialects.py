# SPDX-License-Identifier: MIT
"""Chat completions of models that do not write calls as JSON, or name them themselves: over the wire, both ways."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from scripted import Script
from test_chat import ask, joined, stream

from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.render import Call, render

TOOL = {
    "type": "function",
    "function": {
        "name": "edit",
        "parameters": {
            "properties": {
                "path": {"type": "string"},
                "line": {"type": "integer"},
                "all": {"type": "boolean"},
            }
        },
    },
}
ARGUMENTS = {"path": "5", "line": 3, "all": True}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("per_delta", [1, 5])
def test_calls_of_every_dialect_leave_alike(http, server, monkeypatch, name, per_delta):
    dialect = FAMILIES[name]
    monkeypatch.setattr(server.service, "text", replace(server.service.text, dialect=dialect))
    reasoning = "Hm." if dialect.reasoning or dialect.channels else ""
    content = "" if name == "llama3" else "Now."
    text = render(dialect, reasoning=reasoning, content=content, calls=[Call("edit", ARGUMENTS)])
    server.engine.script = Script(text, per_delta=per_delta)
    choice = ask(http, tools=[TOOL])["choices"][0]
    message: dict[str, Any] = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert (message.get("reasoning_content", ""), message["content"] or "") == (reasoning, content)
    function = message["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("edit", ARGUMENTS)
    together = joined(stream(http, tools=[TOOL]))
    assert (together["content"], together["reasoning_content"]) == (content, reasoning)
    assert together["tool_calls"] == [function]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("kimi_k2", r"functions\.edit:0"), ("mistral", r"\w{9}"), ("hermes", r"call_\w{24}")],
)
def test_id_is_the_models_own_or_one_that_its_template_takes_back(http, server, monkeypatch, name, pattern):
    dialect = FAMILIES[name]
    monkeypatch.setattr(server.service, "text", replace(server.service.text, dialect=dialect))
    server.engine.script = Script(render(dialect, calls=[Call("edit", ARGUMENTS)]))
    whole = ask(http, tools=[TOOL])["choices"][0]["message"]["tool_calls"][0]
    deltas = [c["choices"][0]["delta"] for c in stream(http, tools=[TOOL])]
    streamed = [call["id"] for delta in deltas for call in delta.get("tool_calls", []) if "id" in call]
    assert len(streamed) == 1
    for call_id in (whole["id"], *streamed):
        assert re.fullmatch(pattern, call_id)


def test_second_call_ends_the_answer_of_a_model_whose_template_takes_one(http, server, monkeypatch):
    monkeypatch.setattr(server.service, "text", replace(server.service.text, dialect=FAMILIES["llama3"]))
    call = '{"name": "edit", "parameters": {}}'
    server.engine.script = Script(f"{call}; {call}", hangs=True)
    choice = ask(http, tools=[TOOL])["choices"][0]
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "tool_calls")


def test_malformed_arguments_leave_as_the_model_wrote_them(http, server, monkeypatch):
    monkeypatch.setattr(server.service, "text", replace(server.service.text, dialect=FAMILIES["kimi_k2"]))
    server.engine.script = Script(
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.edit:0<|tool_call_argument_begin|>path = 5"
        "<|tool_call_end|><|tool_calls_section_end|>"
    )
    choice = ask(http, tools=[TOOL])["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "path = 5"
