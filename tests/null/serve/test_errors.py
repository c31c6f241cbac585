# SPDX-License-Identifier: MIT
"""Mistakes of callers and failures of the engine: the OpenAI error shape, words that say what would work."""

from __future__ import annotations

import json
import logging

import pytest
from scripted import CONTEXT_TOKENS, Script

from tokenspeed.base.errors import CapacityError, EngineDeadError, RequestError

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
IMAGE = {"role": "user", "content": [{"type": "image_url"}]}


def error_of(answer, status: int) -> dict[str, str | None]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hi"}, "messages", "expected array"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "role"),
        ({"messages": None}, "messages", "is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'robot'; it must be one of"),
        ({"messages": [IMAGE]}, "messages[0].content[0]", "text only"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].function_call", "tool_calls"),
        ({"temperature": "hot"}, "temperature", "expected float"),
        ({"temperature": -1}, "temperature", "0..100"),
        ({"temperature": 1e308}, "temperature", "0..100"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_k": -5}, "top_k", ""),
        ({"min_p": 2}, "min_p", "0..1"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty is 3"),
        ({"frequency_penalty": -3}, "frequency_penalty", "-2..2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 1.5}, "max_tokens", "expected int"),
        ({"max_tokens": True}, "max_tokens", "expected int"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "differ"),
        ({"min_tokens": -1}, "min_tokens", "min_tokens is -1"),
        ({"n": 0}, "n", "1..128"),
        ({"n": 10**30}, "n", "1..128"),
        ({"seed": 2**70}, "seed", ""),
        ({"stop": [""]}, "stop", "1..1024"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop_token_ids": list(range(999))}, "stop_token_ids", "256"),
        ({"logit_bias": {"7": 1000}}, "logit_bias", "-100..100"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "int"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0..20"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"tool_choice": "required"}, "tool_choice", "no tool"),
        ({"tool_choice": "any"}, "tool_choice", "required"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "auto"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function", "name"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "schema"),
        ({"guided_json": {}}, "guided_json", "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "one of"),
        ({"structured_outputs": {"regex": "[a"}}, "structured_outputs", "regex"),
        ({"structured_outputs": {"regex": "(" * 65}}, "structured_outputs", "nesting"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "at least one"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs", "x"),
        ({"structured_outputs": {"grammar": "\n" * 513}}, "structured_outputs", "lines"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "JSON object"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "ends"),
        ({"functions": []}, "functions", "tools"),
        ({"modalities": ["audio"]}, "modalities", "text"),
        ({"web_search_options": {}}, "web_search_options", "tool"),
        ({"continue_final_message": True}, "messages", "the last message must be the assistant's"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"best_of": 4}, "best_of", "n"),
        ({"priority": 2**40}, "priority", ""),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(http, server, fields, param, words):
    error = error_of(http.post(CHAT, json={"messages": USER} | fields), 400)
    assert error["param"] == param
    assert words in str(error["message"])
    assert error["type"] == "invalid_request_error"
    assert not server.engine.calls


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"prompt": [5] * 4097, "echo": True, "logprobs": 1}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
    ],
)
def test_completions_refuse_by_name(http, fields, param):
    assert error_of(http.post("/v1/completions", json={"prompt": "x"} | fields), 400)["param"] == param


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{} {}",
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"a":' * 5000,
    ],
)
def test_bodies_that_are_no_json_object(http, data):
    answer = http.post(CHAT, content=data, headers={"Content-Type": "application/json"})
    assert error_of(answer, 400)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"a\ud83d", "a\ufffd"),
        (r"\ude00b", "\ufffdb"),
        (r"\ud83d\ud83d\ude00", "\ufffd😀"),
        (r"\\ud83d", "\\ud83d"),
    ],
)
def test_half_a_surrogate_pair_is_read_as_a_replacement(http, server, escaped, text):
    body = '{"prompt": "%s", "bad": "\\ud800"}'.replace("%s", escaped)
    headers = {"Content-Type": "application/json"}
    assert http.post("/v1/completions", content=body, headers=headers).status_code == 200
    assert server.service.text.tokenizer.decode(server.engine.calls[0][0]) == text


def test_deeply_nested_tools_do_not_hurt(http):
    nested = '{"a":' * 400 + "1" + "}" * 400
    tool = '{"type": "function", "function": {"name": "f", "parameters": ' + nested + "}}"
    body = '{"messages": [{"role": "user", "content": "x"}], "tools": [' + tool + "]}"
    answer = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400)


def test_wrong_media_types_are_refused(http):
    answer = http.post(CHAT, content=b"{}", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert "Content-Type: application/json" in str(error_of(answer, 415)["message"])
    error_of(http.post(CHAT, content=b"{}"), 415)
    answer = http.post(
        CHAT, content=b"{}", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    assert error_of(answer, 415)["code"] == "unsupported_encoding"


def test_huge_bodies_are_refused_declared_or_not(http):
    huge = b'{"prompt": "' + b"x" * (2 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}
    assert error_of(http.post(CHAT, content=huge, headers=headers), 413)["code"] == "body_too_large"
    chunked = (huge[i : i + 65536] for i in range(0, len(huge), 65536))
    assert error_of(http.post(CHAT, content=chunked, headers=headers), 413)["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", CHAT, 405, "use POST"),
        ("POST", "/v1/models", 405, "use GET"),
        ("POST", "/chat/completions", 404, "/v1/chat/completions"),
        ("GET", "/nowhere/at/all", 404, "served:"),
        ("POST", "/v1/edits", 404, "served:"),
        ("GET", "/v1/models/other", 404, "'demo'"),
    ],
)
def test_unknown_routes_and_methods_say_what_would_work(http, method, path, status, words):
    assert words in str(error_of(http.request(method, path), status)["message"])


def test_unknown_model_names_the_served_one(http):
    error = error_of(http.post(CHAT, json={"model": "gpt-9", "messages": USER}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'demo'" in str(error["message"])


def test_prompt_beyond_the_context_is_counted_before_queueing(http, server):  # R3
    long = [{"role": "user", "content": "word " * (2 * CONTEXT_TOKENS)}]
    error = error_of(http.post(CHAT, json={"messages": long, "stream": True}), 400)
    assert error["code"] == "context_length_exceeded"
    assert f"maximum context length is {CONTEXT_TOKENS} tokens" in str(error["message"])
    assert (
        error_of(http.post("/v1/completions", json={"prompt": [5] * CONTEXT_TOKENS}), 400)["param"]
        == "prompt"
    )
    assert not server.engine.calls


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_at_admission_are_statuses_of_their_own(http, server, stream):  # R11
    server.engine.script = Script(refusal=CapacityError("full", retry_after_s=7))
    answer = http.post(CHAT, json={"messages": USER, "stream": stream})
    assert error_of(answer, 429)["type"] == "rate_limit_error"
    assert answer.headers["retry-after"] == "7"
    server.engine.script = Script(refusal=EngineDeadError("/secret/path died"))
    answer = http.post(CHAT, json={"messages": USER, "stream": stream})
    assert "secret" not in str(error_of(answer, 503)["message"])
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (Script("some", failure=EngineDeadError("gone")), 503, "engine_dead"),
        (Script("some", failure=CapacityError("full", retry_after_s=3)), 429, "engine_full"),
        (
            Script("some", failure=RequestError("no", code="context_length_exceeded")),
            400,
            "context_length_exceeded",
        ),
        (Script("some", "error", error="not finite"), 500, "generation_failed"),
        (Script("some", failure=ValueError("a defect: secret")), 500, "generation_failed"),
    ],
)
def test_failures_on_the_way_end_streams_with_an_error_event(http, server, script, status, code):  # R2
    server.engine.script = script
    assert error_of(http.post(CHAT, json={"messages": USER}), status)["code"] == code
    text = http.post(CHAT, json={"messages": USER, "stream": True}).text
    *_, event, done, _ = text.split("\n\n")
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == code
    assert done == "data: [DONE]"


class _Lines(logging.Handler):
    """Keeps the messages of one logger, whatever else listens to it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_unknown_fields_are_ignored_with_one_log_line_a_name(http):  # R4
    body = {"messages": [USER[0] | {"mood": "glad"}], "sparkle": 1, "user": "u", "verbosity": "low"}
    handler = _Lines()
    logger = logging.getLogger("tokenspeed.serve")
    logger.addHandler(handler)
    try:
        for _ in range(3):
            assert http.post(CHAT, json=body).status_code == 200
    finally:
        logger.removeHandler(handler)
    lines = [message for message in handler.messages if "unknown field" in message]
    assert sorted(lines) == [
        "ignored the unknown field 'messages[].mood' of a request",
        "ignored the unknown field 'sparkle' of a request",
    ]
