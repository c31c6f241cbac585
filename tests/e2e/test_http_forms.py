# SPDX-License-Identifier: MIT
"""Answers held to a form, over HTTP: the bundled model, the real core."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.test_http import Server, running

USER = [{"role": "user", "content": "Write a function that reverses a list."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "measure", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def post(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def fits(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"name", "size"} and len(value["name"]) <= 12 and 0 <= value["size"] <= 99


def test_json_of_a_schema_comes_after_the_reasoning(server):
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    body = {"messages": USER, "max_tokens": 1500, "temperature": 0, "response_format": form}
    choice = post(server, "chat/completions", **body)
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["reasoning_content"]
    assert fits(choice["message"]["content"])


@pytest.mark.parametrize("seed", range(3))
def test_json_of_a_schema_whatever_the_temperature(server, seed):
    body = {"prompt": "The thing is ", "max_tokens": 200, "temperature": 1.5, "seed": seed}
    choice = post(server, "completions", **body, structured_outputs={"json": SCHEMA})
    assert choice["finish_reason"] == "stop"
    assert fits(choice["text"])


def test_a_forced_call_is_a_call_of_that_tool(server):
    for wanted in ("required", {"type": "function", "function": {"name": "measure"}}):
        body = {"messages": USER, "tools": TOOLS, "tool_choice": wanted, "max_tokens": 600, "seed": 3}
        choice = post(server, "chat/completions", **body)
        assert choice["finish_reason"] == "tool_calls"
        assert not choice["message"]["content"]
        for call in choice["message"]["tool_calls"]:
            assert call["function"]["name"] in ("measure", "stop")
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["measure"]


def test_structured_outputs_of_every_kind_side_by_side(server):
    asked = {
        "[a-f]{4}-[0-9]{4}": {"regex": "[a-f]{4}-[0-9]{4}"},
        "yes|no": {"choice": ["yes", "no"]},
        "ab?[0-9]{2}": {"grammar": 'start: "a" B? C\nB: "b"\nC: /[0-9]{2}/'},
        r'\{"size":? .*\}': {"json": {**SCHEMA, "properties": {"size": {"const": 7}}, "required": ["size"]}},
    }

    def ask(form: dict[str, Any] | None) -> str:
        extra = {} if form is None else {"structured_outputs": form}
        return post(server, "completions", prompt="def f", max_tokens=40, temperature=0, **extra)["text"]

    alone = ask(None)
    with ThreadPoolExecutor(5) as pool:
        *told, beside = pool.map(ask, [*asked.values(), None])
    for (pattern, _), text in zip(asked.items(), told, strict=True):
        assert re.fullmatch(pattern, text) or (
            pattern.startswith(r"\{") and json.loads(text) == {"size": 7}
        ), text
    assert beside == alone


def test_a_seed_makes_a_form_repeatable_and_log_probabilities_go_with_it(server):
    body = {
        "prompt": "x",
        "max_tokens": 30,
        "seed": 9,
        "logprobs": 2,
        "structured_outputs": {"regex": "[a-z]{8}"},
    }
    first, second = (post(server, "completions", **body) for _ in range(2))
    assert first["text"] == second["text"]
    assert len(first["logprobs"]["tokens"]) >= 2


def test_stop_strings_and_lengths_cut_a_form(server):
    form = {"structured_outputs": {"regex": "a{20}b{20}"}}
    assert post(server, "completions", prompt="x", max_tokens=3, **form)["finish_reason"] == "length"
    assert post(server, "completions", prompt="x", max_tokens=80, stop="ab", **form)["text"] == "a" * 19
