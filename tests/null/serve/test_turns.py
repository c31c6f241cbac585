# SPDX-License-Identifier: MIT
"""Chat turns over HTTP through the turn ledger: equal ids, equal errors, tenants apart, checks in production."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from scripted import Script

from tokenspeed.serve import turns as turns_module
from tokenspeed.text.ledger import Writer

SYSTEM = {"role": "system", "content": "Be brief. " * 40}
HISTORY = [SYSTEM, {"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "a.py"}}\n</tool_call>'


def count(http, series: str) -> float:
    """A series of `/metrics`."""
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(series + " "))


def effort(name: str) -> str:
    return f'tokenspeed_chat_prompts_total{{effort="{name}"}}'


@pytest.fixture
def session(http, server):
    """Sends a turn and checks its ids against those of /tokenize, which renders and encodes everything."""

    def send(
        messages: list[dict[str, Any]], headers: Any = None, **fields: Any
    ) -> tuple[dict[str, Any], str]:
        efforts = ("whole", "compared", "appended")
        before = [count(http, effort(name)) for name in efforts]
        body = {"model": "demo", "messages": messages} | fields
        answer = http.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        after = [count(http, effort(name)) for name in efforts]
        asked = {"messages": messages} | {key: fields[key] for key in ("tools",) if key in fields}
        assert server.engine.calls[-1][0] == http.post("/tokenize", json=asked).json()["tokens"]
        grown = [name for name, a, b in zip(efforts, before, after, strict=True) if b > a]
        return answer.json()["choices"][0]["message"], *grown

    server.service.turns.ledger.__init__()
    return send


def test_a_session_with_tools_appends_and_foresees_its_answers(http, server, session):
    server.engine.script = Script(f"Looking.\n{CALL}")
    messages = list(HISTORY)
    for turn in range(4):
        encoded = count(http, 'tokenspeed_chat_prompt_tokens_total{source="encoded"}')
        message, how = session(messages, tools=[TOOL])
        assert how == ("appended" if turn else "whole")
        encoded = count(http, 'tokenspeed_chat_prompt_tokens_total{source="encoded"}') - encoded
        assert not turn or encoded < 40  # the answer was foreseen: only results and marks are new
        call = message["tool_calls"][0]
        messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": f"x = {turn}"}]
    assert count(http, "tokenspeed_ledger_bytes") > 0


def test_errors_are_those_of_a_whole_reading(http, server, session):
    message, _ = session(HISTORY)
    grown = [*HISTORY, message]
    for wrong in (
        {"role": "user", "content": 5},
        {"role": "robot", "content": "x"},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "user", "content": "x", "function_call": {}},
        {},
        7,
    ):
        body = {"model": "demo", "messages": [*grown, wrong]}
        known = http.post("/v1/chat/completions", json=body)
        server.service.turns.ledger.__init__()
        unknown = http.post("/v1/chat/completions", json=body)
        assert (known.status_code, known.json()) == (unknown.status_code, unknown.json())
        assert known.status_code == 400
        assert "messages" in known.text
        session(HISTORY)
    assert http.post("/v1/chat/completions", json={"model": "demo", "messages": []}).status_code == 400


def test_bodies_in_other_spellings_are_only_slower(http, server, session):
    """Spaces, an escape, a second field of the same name: the last one counts, as everywhere."""
    message, _ = session(HISTORY)
    messages = [*HISTORY, message, {"role": "user", "content": "more"}]
    wanted = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    for text in (
        json.dumps({"messages": messages}, indent=2),
        json.dumps({"messages": messages}).replace("more", "mo\\u0072e"),
        '{"messages": [], ' + json.dumps({"messages": messages})[1:],
        json.dumps({"messages": messages, "tools": None, "stop": None}).replace("]", " ]"),
    ):
        headers = {"Content-Type": "application/json"}
        assert http.post("/v1/chat/completions", content=text, headers=headers).status_code == 200
        assert server.engine.calls[-1][0] == wanted


def test_cache_marks_that_move_do_not_end_appending(session):
    def marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As some clients send it: a mark on the last message, gone from those before."""
        text = messages[-1]["content"]
        part = {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}
        return [*messages[:-1], messages[-1] | {"content": [part]}]

    def parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]

    messages, efforts = parts(HISTORY[:1]), []
    for turn in range(4):
        messages.append({"role": "user", "content": f"turn {turn}"})
        answer, how = session(marked(messages))
        efforts.append(how)
        messages = [*messages[:-1], *parts(messages[-1:]), answer]
    assert efforts == ["whole", "appended", "appended", "appended"]


def test_tenants_are_apart_and_a_session_name_proves_nothing(session):
    message, _ = session(HISTORY, cache_salt="a", session_id="s")
    more = [*HISTORY, message, {"role": "user", "content": "more"}]
    assert session(more, cache_salt="b", session_id="s")[1] == "whole"
    assert session(more, cache_salt="a", session_id="other")[1] == "appended"
    lie = [{"role": "user", "content": "another story " * 30}]
    assert session(lie, cache_salt="a", session_id="s")[1] == "whole"


def test_long_additions_go_to_a_thread(session, server, monkeypatch):
    monkeypatch.setattr(turns_module, "INLINE_BYTES", 8)
    monkeypatch.setattr(turns_module, "INLINE_IDS", 1)
    message, _ = session(HISTORY)
    assert session([*HISTORY, message, {"role": "user", "content": "more"}])[1] == "appended"


def wait_for(http, series: str, value: float) -> None:
    deadline = time.monotonic() + 20
    while count(http, series) < value:
        assert time.monotonic() < deadline, series


def test_checks_in_production_count_and_drop(http, session, server, monkeypatch):
    equal = 'tokenspeed_ledger_checks_total{result="equal"}'
    different = 'tokenspeed_ledger_checks_total{result="different"}'
    monkeypatch.setattr(server.service.turns, "checked_share", 1.0)
    before, before_different = count(http, equal), count(http, different)
    message, _ = session(HISTORY)
    more = [*HISTORY, message, {"role": "user", "content": "more"}]
    session(more)
    wait_for(http, equal, before + 1)
    assert count(http, different) == before_different
    # A defect: ids of something else.
    resume = Writer._resume

    def wrong(self: Writer, *args: Any) -> Any:
        encoded, reused = resume(self, *args)
        ids = np.frombuffer(bytes(encoded.ids), np.int32)[::-1].tobytes()
        return type(encoded)(encoded.text, type(encoded.ids)().plus(ids), *(encoded.starts,) * 3), reused

    with monkeypatch.context() as broken:
        broken.setattr(Writer, "_resume", wrong)
        body = {"model": "demo", "messages": [*more, message, {"role": "user", "content": "even more"}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    wait_for(http, different, before_different + 1)
    assert len(server.service.turns.ledger) == 0
    assert session(more)[1] == "whole"
