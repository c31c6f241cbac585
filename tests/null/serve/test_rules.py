# SPDX-License-Identifier: MIT
"""The rules that agents' clients taught, one test a rule and dialect: R1 to R12. (R13 is in test_sessions.)"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import scripted
from scripted import CONTEXT_TOKENS, Script

from tokenspeed.base import config
from tokenspeed.base.errors import CapacityError, EngineDeadError, SetupError
from tokenspeed.serve import answer as answer_module
from tokenspeed.serve.auth import check_exposure
from tokenspeed.text.generation_config import GenerationDefaults

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'
ANSWER = f"<think>\nwhy\n</think>\n\nSome words.\n{CALL}"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
SECRET = "a word nobody else says"
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
DIALECTS = [CHAT, MESSAGES, RESPONSES]
TOOLS: dict[str, Any] = {
    CHAT: [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    MESSAGES: [{"name": "f", "input_schema": SCHEMA}],
    RESPONSES: [{"type": "function", "name": "f", "parameters": SCHEMA}],
}
each_dialect = pytest.mark.parametrize("path", DIALECTS)


def body_of(path: str, text: str = "hi", **fields: Any) -> dict[str, Any]:
    if path == RESPONSES:
        return {"input": [{"role": "user", "content": text}]} | fields
    return {"messages": [{"role": "user", "content": text}]} | fields


def events_of(text: str) -> list[dict[str, Any]]:
    lines = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]


def texts_of(path: str, document: dict[str, Any]) -> dict[str, str]:
    """Reasoning, words and arguments of a whole answer."""
    if path == CHAT:
        message = document["choices"][0]["message"]
        call = message["tool_calls"][0]["function"]
        return {"why": message["reasoning_content"], "words": message["content"], "call": call["arguments"]}
    if path == MESSAGES:
        thinking, text, call = document["content"]
        return {"why": thinking["thinking"], "words": text["text"], "call": json.dumps(call["input"])}
    reasoning, message, call = document["output"]
    words = message["content"][0]["text"]
    return {"why": reasoning["content"][0]["text"], "words": words, "call": call["arguments"]}


def streamed_of(path: str, events: list[dict[str, Any]]) -> dict[str, str]:
    """The same of a stream, joined."""
    joined = {"why": "", "words": "", "call": ""}
    for event in events:
        if path == CHAT:
            delta = event["choices"][0]["delta"]
            joined["why"] += delta.get("reasoning_content", "")
            joined["words"] += delta.get("content") or ""
            joined["call"] += "".join(c["function"]["arguments"] for c in delta.get("tool_calls", ()))
        elif path == MESSAGES and event["type"] == "content_block_delta":
            joined["why"] += event["delta"].get("thinking", "")
            joined["words"] += event["delta"].get("text", "")
            joined["call"] += event["delta"].get("partial_json", "")
        elif path == RESPONSES and event["type"].endswith(".delta"):
            kinds = {"response.reasoning_text": "why", "response.output_text": "words"}
            joined[kinds.get(event["type"].removesuffix(".delta"), "call")] += event["delta"]
    return joined


@each_dialect
def test_r1_headers_come_at_admission_and_a_real_event_while_the_engine_is_silent(
    http, server, monkeypatch, path
):
    monkeypatch.setattr(answer_module, "HEARTBEAT_S", 0.02)
    server.engine.script = Script("", finish="length", hangs=True)
    with http.stream("POST", path, json=body_of(path, stream=True)) as reply:
        assert reply.status_code == 200
        lines = (line for line in reply.iter_lines() if line.startswith("data: {"))
        assert all(json.loads(next(lines).removeprefix("data: ")) for _ in range(5))  # no comments


@each_dialect
def test_r1_what_is_held_back_does_not_silence_a_stream(http, server, monkeypatch, path):
    """Tokens that mean nothing yet: the engine is busy, but the client hears nothing."""
    monkeypatch.setattr(answer_module, "HEARTBEAT_S", 0.0)
    server.engine.script = Script(" \n" * 30 + "x")
    events = events_of(http.post(path, json=body_of(path, stream=True)).text)
    assert len(events) > 6


@each_dialect
@pytest.mark.parametrize(
    "failure", [EngineDeadError("gone"), CapacityError("full", retry_after_s=1), ValueError("x")]
)
def test_r2_every_stream_ends_with_its_terminal_event(http, server, path, failure):
    terminal = {
        CHAT: ["[DONE]"],
        MESSAGES: ["message_stop", "error"],
        RESPONSES: ["response.completed", "response.failed"],
    }
    for script in (Script("some"), Script("some", failure=failure), Script("some", "error", error="NaN")):
        server.engine.script = script
        text = http.post(path, json=body_of(path, stream=True)).text
        last = text.rstrip().splitlines()[-1].removeprefix("data: ")
        assert (last if path == CHAT else json.loads(last)["type"]) in terminal[path]


def test_r3_overflow_is_counted_before_queueing_and_said_in_the_words_clients_know(http, server):
    long = "word " * (2 * CONTEXT_TOKENS)
    for path in (*DIALECTS, "/v1/completions"):
        body = {"prompt": long} if path == "/v1/completions" else body_of(path, long)
        answer = http.post(path, json=body)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        if path == MESSAGES:
            assert message.startswith("prompt is too long: ")
            assert message.endswith(f" tokens > {CONTEXT_TOKENS - 1} maximum")
        else:
            assert f"maximum context length is {CONTEXT_TOKENS} tokens" in message
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert not server.engine.calls


class _Lines(logging.Handler):
    """Keeps the messages of one logger, whatever else listens to it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines, logger = _Lines(), logging.getLogger("tokenspeed")
    logger.addHandler(lines)
    yield lines.messages
    logger.removeHandler(lines)


@each_dialect
def test_r4_an_unknown_field_costs_one_log_line_and_no_400(http, log, path):
    name = f"sparkle_{path.count('c')}_{len(path)}"
    body = body_of(path, **{name: 1})
    body["input" if path == RESPONSES else "messages"][0][f"{name}_inside"] = 2
    for _ in range(3):
        headers = {"x-unknown-header": "1", "anthropic-beta": "what-1900-01-01"}
        assert http.post(path, json=body, headers=headers).status_code == 200
    said = [line for line in log if name in line]
    assert len(said) == 2
    assert all("ignored the unknown field" in line for line in said)


KEYS = [
    ({}, 401),
    ({"x-api-key": "K"}, 401),
    ({"x-api-key": "k"}, 200),
    ({"Authorization": "Bearer k"}, 200),
]


def test_r5_a_key_is_needed_beyond_loopback_and_taken_either_way():
    with pytest.raises(SetupError, match="--api-key"):
        check_exposure(config.build(host="0.0.0.0").server)
    check_exposure(config.build(host="127.0.0.1").server)
    check_exposure(config.build(host="0.0.0.0", insecure=True).server)
    with scripted.serving(api_key="k") as keyed:
        for path in DIALECTS:
            for headers, status in KEYS:
                answer = httpx.post(keyed.url + path, json=body_of(path), headers=headers, trust_env=False)
                assert answer.status_code == status
                assert status == 200 or answer.json()["error"]["type"] == "authentication_error"


@each_dialect
def test_r6_pseudo_headers_in_system_texts_do_not_reach_the_prompt(http, server, path):
    for line in (
        "x-anthropic-billing-header: cc_version=2.1; cch=1f;\n",
        "x-anthropic-billing-header: cch=2e;\n\n",
        "",
    ):
        text = line + "Be brief. x-anthropic-words: stay"
        if path == CHAT:
            body = body_of(path)
            body["messages"].insert(0, {"role": "system", "content": text})
        elif path == MESSAGES:
            blocks = [{"type": "text", "text": part} for part in (line, text.removeprefix(line)) if part]
            body = body_of(path, system=blocks)
        else:
            body = body_of(path, instructions=text)
        assert http.post(path, json=body).status_code == 200
    assert len({tuple(call[0]) for call in server.engine.calls}) == 1
    assert "stay" in server.service.text.tokenizer.decode(server.engine.calls[0][0])


@each_dialect
@pytest.mark.parametrize("per_delta", [1, 2, 5, 1000])
def test_r7_streamed_and_whole_answers_are_the_same_events(http, server, path, per_delta):
    server.engine.script = Script(ANSWER, per_delta=per_delta)
    body = body_of(path, tools=TOOLS[path])
    whole = texts_of(path, http.post(path, json=body).json())
    assert json.loads(whole["call"]) == {"a": "b"}
    streamed = streamed_of(path, events_of(http.post(path, json=body | {"stream": True}).text))
    assert {**streamed, "call": json.loads(streamed["call"])} == {**whole, "call": json.loads(whole["call"])}
    assert (whole["why"], whole["words"]) == ("why", "Some words.")


def test_r8_a_forced_call_is_the_same_constraint_in_every_dialect(http, server):
    required: dict[str, Any] = {CHAT: "required", MESSAGES: {"type": "any"}, RESPONSES: "required"}
    for path in DIALECTS:
        assert (
            http.post(path, json=body_of(path, tools=TOOLS[path], tool_choice=required[path])).status_code
            == 200
        )
    constraints = [origin["constraint"] for _, _, origin in server.engine.calls]
    assert constraints[0] is not None
    assert constraints[0] == constraints[1] == constraints[2]


@each_dialect
@pytest.mark.parametrize("stream", [False, True])
def test_r9_a_client_that_leaves_aborts_its_request(server, path, stream):
    server.engine.script = Script("some words", hangs=True)
    body = json.dumps(body_of(path, stream=stream)).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            assert b"200 OK" in client.recv(4096)
        deadline = time.monotonic() + 10
        while not server.engine.calls:
            assert time.monotonic() < deadline
    assert server.engine.aborts.get(timeout=5) == "client"


@each_dialect
def test_r10_the_checkpoints_recommendations_fill_unset_fields_only(http, server, monkeypatch, path):
    defaults = GenerationDefaults(temperature=0.3, top_p=0.8)
    monkeypatch.setattr(server.service, "text", replace(server.service.text, defaults=defaults))
    http.post(path, json=body_of(path))
    http.post(path, json=body_of(path, temperature=1.0))
    sampled = [(sampling.temperature, sampling.top_p) for _, sampling, _ in server.engine.calls]
    assert sampled == [(0.3, 0.8), (1.0, 0.8)]


@each_dialect
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_r11_a_full_engine_says_when_to_come_again(http, server, path, status, stream):
    server.engine.script = Script(refusal=CapacityError("full", retry_after_s=7, status=status))
    answer = http.post(path, json=body_of(path, stream=stream))
    assert answer.status_code == (529 if path == MESSAGES and status == 503 else status)
    assert answer.headers["retry-after"] == "7"


@each_dialect
def test_r12_logs_and_metrics_hold_no_prompt_text(http, server, log, path):
    for script in (Script(SECRET), Script(SECRET, failure=EngineDeadError("gone"))):
        server.engine.script = script
        http.post(path, json=body_of(path, SECRET))
        http.post(path, json=body_of(path, SECRET, stream=True, temperature=SECRET))
    assert not any(SECRET in line for line in log)
    for page in ("/metrics", "/dashboard/data", "/debug/requests"):
        assert SECRET not in http.get(page).text


@each_dialect
def test_r12_request_logs_hold_bodies_that_can_be_sent_again(tmp_path: Path, path):
    with scripted.serving(log_requests=str(tmp_path)) as logging_server:
        body = body_of(path, SECRET)
        assert httpx.post(logging_server.url + path, json=body, trust_env=False).status_code == 200
        (kept,) = tmp_path.iterdir()
        assert json.loads(kept.read_bytes()) == body
        assert kept.stat().st_mode & 0o077 == 0
