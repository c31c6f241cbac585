# SPDX-License-Identifier: MIT
"""POST /v1/messages: shapes, event order, blocks in and out, usage, errors; with the anthropic SDK as a client."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from scripted import CONTEXT_TOKENS, Script

from tokenspeed.base.errors import CapacityError, EngineDeadError, PromptTooLongError
from tokenspeed.serve import answer as answer_module
from tokenspeed.serve.seal import Seal

USER = [{"role": "user", "content": "hi"}]
TOOL = {"name": "read", "description": "Reads.", "input_schema": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "a.py"}}\n</tool_call>'
THOUGHT = f"<think>\nwhich file?\n</think>\n\nLooking.\n{CALL}\n{CALL}"
PATH = "/v1/messages"


def ask(http, **fields: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"model": "demo", "messages": USER, "max_tokens": 512} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(http, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    body = {"model": "demo", "messages": USER, "max_tokens": 512, "stream": True} | fields
    answer = http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_of(answer.text)


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name.removeprefix("event: ") == document["type"]
        found.append((document["type"], document))
    return found


def prompt_text(server, call: int = -1) -> str:
    return server.service.text.tokenizer.decode(server.engine.calls[call][0], skip_special_tokens=False)


def rendered(server, messages: list[dict[str, Any]], **options: Any) -> str:
    return server.service.text.text_of_chat(messages, **options)


@pytest.fixture
def sdk(server):
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
        yield client


def test_whole_answer_has_the_anthropic_shape(http, server):
    server.engine.script = Script(THOUGHT, cached_tokens=3)
    document = ask(http, tools=[TOOL])
    assert document["id"].startswith("msg_")
    head = {key: document[key] for key in ("type", "role", "model", "stop_reason", "stop_sequence")}
    assert head == {
        "type": "message", "role": "assistant", "model": "demo", "stop_reason": "tool_use", "stop_sequence": None
    }  # fmt: skip
    thinking, text, *calls = document["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "which file?")
    assert thinking["signature"]
    assert text == {"type": "text", "text": "Looking."}
    assert [(c["type"], c["name"], c["input"]) for c in calls] == [("tool_use", "read", {"path": "a.py"})] * 2
    assert len({call["id"] for call in calls}) == 2
    usage = document["usage"]
    assert usage["input_tokens"] == len(server.engine.calls[0][0]) - 3
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (3, 0)
    assert usage["output_tokens"] > 10


@pytest.mark.parametrize("per_delta", [1, 3, 1000])
def test_streamed_answer_joins_to_the_whole_one(http, server, per_delta):
    server.engine.script = Script(THOUGHT, per_delta=per_delta, cached_tokens=2)
    whole = ask(http, tools=[TOOL])
    events = stream(http, tools=[TOOL])
    names = [name for name, _ in events if name != "ping"]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    start = events[[name for name, _ in events].index("message_start")][1]["message"]
    assert start["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert start["usage"]["cache_read_input_tokens"] == 2
    blocks: list[dict[str, Any]] = []
    is_open = False
    for name, event in events:
        if name == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"] | {"json": ""})
            is_open = True
        elif name == "content_block_delta":
            assert is_open
            assert event["index"] == len(blocks) - 1
            match event["delta"]:
                case {"type": "text_delta", "text": text}:
                    blocks[-1]["text"] += text
                case {"type": "thinking_delta", "thinking": text}:
                    blocks[-1]["thinking"] += text
                case {"type": "input_json_delta", "partial_json": text}:
                    blocks[-1]["json"] += text
                case {"type": "signature_delta", "signature": signature}:
                    blocks[-1]["signature"] = signature
        elif name == "content_block_stop":
            is_open = False
    assert [b["type"] for b in blocks] == [b["type"] for b in whole["content"]]
    assert blocks[0]["thinking"] == whole["content"][0]["thinking"]
    assert blocks[1]["text"] == whole["content"][1]["text"]
    assert [json.loads(b["json"]) for b in blocks[2:]] == [b["input"] for b in whole["content"][2:]]
    delta = events[-2][1]
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"] == whole["usage"]


def test_the_sdk_accumulates_a_stream_into_the_whole(server, sdk):
    server.engine.script = Script(THOUGHT)
    fields: dict[str, Any] = {"model": "demo", "max_tokens": 512, "messages": USER, "tools": [TOOL]}
    with sdk.messages.stream(**fields) as events:
        final = events.get_final_message()
    plain = sdk.messages.create(**fields)
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.content[1].text == plain.content[1].text == "Looking."
    assert [b.input for b in final.content[2:]] == [b.input for b in plain.content[2:]]
    assert final.stop_reason == plain.stop_reason == "tool_use"
    assert final.usage.output_tokens == plain.usage.output_tokens
    assert sdk.messages.count_tokens(model="demo", messages=USER, tools=[TOOL]).input_tokens == len(
        server.engine.calls[0][0]
    )


def test_every_block_reaches_the_template_in_order(http, server):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "theirs"},
                {"type": "redacted_thinking", "data": "theirs"},
                {"type": "text", "text": "I look."},
                {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
                {"type": "tool_use", "id": "a", "name": "read", "input": {"path": "a", "n": 1}},
                {"type": "tool_use", "id": "b", "name": "read", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "x = 1"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no file"}, {"type": "text", "text": "b"}],
                },
                {"type": "document", "title": "T", "source": {"type": "text", "data": "doc"}},
                {"type": "search_result", "title": "S", "source": "u", "content": [{"type": "text", "text": "hit"}]},
                {"type": "text", "text": "go on"},
            ],
        },
    ]  # fmt: skip
    tools = [TOOL, {"type": "web_search_20250305", "name": "web_search"}]
    ask(http, messages=messages, tools=tools, system=[{"type": "text", "text": "Be brief."}])
    calls = [
        {"id": "a", "type": "function", "function": {"name": "read", "arguments": {"path": "a", "n": 1}}},
        {"id": "b", "type": "function", "function": {"name": "read", "arguments": {}}},
    ]
    wanted = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "x = 1"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no file\nb"},
        {"role": "user", "content": "T\ndoc\nS\nu\nhit\ngo on"},
    ]
    function = {"name": "read", "description": "Reads.", "parameters": TOOL["input_schema"]}
    plain = [{"type": "function", "function": function}]
    assert prompt_text(server) == rendered(server, wanted, tools=plain)


def test_system_inside_messages_is_written_where_it_stands(http, server):
    messages = [*USER, {"role": "assistant", "content": "yes"}, {"role": "system", "content": "Mind."}, *USER]
    ask(http, messages=messages)
    assert prompt_text(server) == rendered(server, messages)


def test_hidden_reasoning_travels_in_its_signature(http, server):
    server.engine.script = Script("<think>\nsecret plan\n</think>\n\nDone.")
    thinking = {"type": "adaptive", "display": "omitted"}
    document = ask(http, thinking=thinking)
    block = document["content"][0]
    assert block["thinking"] == ""
    assert "secret" not in block["signature"]
    streamed = [event for name, event in stream(http, thinking=thinking) if name == "content_block_delta"]
    assert not any(event["delta"]["type"] == "thinking_delta" for event in streamed)
    ask(http, messages=[*USER, {"role": "assistant", "content": document["content"]}, *USER])
    wanted = {"role": "assistant", "content": "Done.", "reasoning_content": "secret plan"}
    assert prompt_text(server) == rendered(server, [*USER, wanted, *USER])


def test_seals_open_only_with_their_key_and_unharmed():
    seal = Seal("key")
    sealed = seal.close("plän \ud800" * 1000)
    assert Seal("key").open(sealed) == "plän \ud800" * 1000
    assert Seal(None).open(sealed) is None
    for wrong in (
        "",
        "ts1-",
        "ts1-!!",
        sealed[:-4],
        sealed[:40] + ("A" if sealed[40] != "A" else "B") + sealed[41:],
    ):
        assert seal.open(wrong) is None
    assert seal.close("") != seal.close("")


def test_stop_reasons(http, server):
    server.engine.script = Script("one two three four", hangs=True)
    document = ask(http, stop_sequences=["three"])
    assert (document["stop_reason"], document["stop_sequence"]) == ("stop_sequence", "three")
    assert document["content"] == [{"type": "text", "text": "one two "}]
    delta = stream(http, stop_sequences=["three"])[-2][1]["delta"]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": "three"}
    server.engine.script = Script("one two three four")
    assert ask(http, max_tokens=2)["stop_reason"] == "max_tokens"
    assert ask(http)["stop_reason"] == "end_turn"
    assert server.engine.calls[-1][1].tokens_max == 512


def test_truncated_call_has_true_partial_arguments(http, server):
    server.engine.script = Script('<tool_call>\n{"name": "read", "arguments": {"path": "a', "length")
    document = ask(http, tools=[TOOL])
    call = document["content"][0]
    assert (document["stop_reason"], call["input"], call["partial_json"]) == ("max_tokens", {}, '{"path": "a')
    deltas = [event["delta"] for name, event in stream(http, tools=[TOOL]) if name == "content_block_delta"]
    assert "".join(delta["partial_json"] for delta in deltas) == '{"path": "a'


def test_one_call_only_where_parallel_use_is_disabled(http, server):
    server.engine.script = Script(THOUGHT, hangs=True)
    document = ask(http, tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [b["type"] for b in document["content"]] == ["thinking", "text", "tool_use"]
    assert server.engine.aborts.get(timeout=5) == "stop_string"


def test_tools_are_left_out_with_tool_choice_none(http, server):
    ask(http, tools=[TOOL], tool_choice={"type": "none"})
    ask(http, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    ask(http)
    assert len({tuple(call[0]) for call in server.engine.calls}) == 1


def test_sampling_fields_reach_the_engine(http, server):
    ask(http, temperature=0.3, top_p=0.9, top_k=7, cache_salt="s", priority=2, metadata={"user_id": "u"})
    _, sampling, origin = server.engine.calls[-1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.9, 7)
    assert (origin["salt"], origin["priority"]) == (b"s", 2)


def test_a_session_costs_what_is_new(http, server):
    server.service.turns.ledger.__init__()
    server.engine.script = Script(f"Looking.\n{CALL}")
    mark = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "Be brief."} | mark]
    efforts: list[str] = []
    messages: list[dict[str, Any]] = []
    last: dict[str, Any] = {"type": "text", "text": "read a.py " * 40}
    for turn in range(4):
        asked = {
            "messages": [*messages, {"role": "user", "content": [last | mark]}],
            "system": system,
            "tools": [TOOL],
        }
        before = {name: value(http, name) for name in ("whole", "compared", "appended")}
        document = ask(http, **asked)
        efforts += [name for name in before if value(http, name) > before[name]]
        server.service.turns.ledger, kept = type(server.service.turns.ledger)(), server.service.turns.ledger
        counted = http.post(f"{PATH}/count_tokens", json=asked)  # by the whole way
        assert counted.json() == {"input_tokens": len(server.engine.calls[-1][0])}
        server.service.turns.ledger = kept
        messages += [
            {"role": "user", "content": [last]},
            {"role": "assistant", "content": document["content"]},
        ]
        last = {"type": "tool_result", "tool_use_id": document["content"][-1]["id"], "content": f"x = {turn}"}
    assert efforts == ["whole", "appended", "appended", "appended"]


def value(http, effort: str) -> float:
    series = f'tokenspeed_chat_prompts_total{{effort="{effort}"}} '
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(series))


def error_of(answer, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert set(document) == {"type", "error", "request_id"}
    assert document["type"] == "error"
    assert answer.headers["request-id"] == document["request_id"]
    return document["error"]


def of_user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (of_user({"type": "image", "source": {"type": "base64"}}), "messages[0].content[0]: an image"),
        (of_user({"type": "document", "source": {"type": "base64"}}), "messages[0].content[0].source"),
        (of_user({"type": "hologram"}), "hologram"),
        (of_user({"type": "text"}), "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]}, "content[0].name"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"session_id": "x" * 999}, "session_id"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(http, server, fields, words):
    error = error_of(http.post(PATH, json={"messages": USER} | fields), 400)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert not server.engine.calls


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (CapacityError("full", retry_after_s=7), 429, "rate_limit_error"),
        (CapacityError("closing", retry_after_s=7, status=503), 529, "overloaded_error"),
        (EngineDeadError("/secret"), 529, "overloaded_error"),
        (PromptTooLongError(5000, 4095), 400, "invalid_request_error"),
    ],
)
def test_refusals_have_their_status_and_type(http, server, refusal, status, kind):
    server.engine.script = Script(refusal=refusal)
    answer = http.post(PATH, json={"messages": USER, "stream": True})
    assert error_of(answer, status)["type"] == kind
    assert status == 400 or "retry-after" in answer.headers


def test_errors_before_the_handler_have_the_dialects_shape(http):
    assert (
        error_of(http.post(PATH, json={"model": "claude", "messages": USER}), 404)["type"]
        == "not_found_error"
    )
    assert error_of(http.post(PATH, content=b"{}"), 415)
    assert error_of(http.post(PATH, content=b"[", headers={"Content-Type": "application/json"}), 400)
    assert error_of(http.post("/v1/messages/batches", json={}), 404)["type"] == "not_found_error"
    assert error_of(http.get(PATH), 405)
    huge = http.post(PATH, content=b" " * (2 << 20), headers={"Content-Type": "application/json"})
    assert error_of(huge, 413)["type"] == "request_too_large"
    assert error_of(http.get("/nothing", headers={"anthropic-version": "2023-06-01"}), 404)


def test_failures_on_the_way_end_streams_with_an_error_event(http, server):
    server.engine.script = Script("some", failure=EngineDeadError("gone"))
    *_, (name, event) = stream(http)
    assert (name, event["error"]["type"]) == ("error", "overloaded_error")


def test_a_silent_engine_is_pinged_for(http, server, monkeypatch):
    monkeypatch.setattr(answer_module, "HEARTBEAT_S", 0.05)
    server.engine.script = Script("", finish="length", hangs=True)
    with http.stream("POST", PATH, json={"messages": USER, "stream": True}) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("event"))
        assert [next(lines) for _ in range(3)] == ["event: ping"] * 3
    assert server.engine.aborts.get(timeout=5) == "client"


def test_any_query_string_is_welcome(http):
    assert http.post(f"{PATH}?beta=true", json={"messages": USER}).status_code == 200


def test_overflow_has_the_words_clients_compact_on(http):
    long = [{"role": "user", "content": "word " * (2 * CONTEXT_TOKENS)}]
    message = error_of(http.post(PATH, json={"messages": long, "stream": True}), 400)["message"]
    count = http.post(f"{PATH}/count_tokens", json={"messages": long}).json()["input_tokens"]
    assert message == f"prompt is too long: {count} tokens > {CONTEXT_TOKENS - 1} maximum"


SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "read"}},
        {"tools": [TOOL | {"strict": True, "input_schema": SCHEMA}]},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    ],
)
def test_forms_reach_the_engine_as_constraints(http, server, fields):
    ask(http, **fields)
    assert server.engine.calls[-1][2]["constraint"] is not None
    ask(http, tools=[TOOL])
    assert server.engine.calls[-1][2]["constraint"] is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "write"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_forms_that_cannot_be_are_refused_by_name(http, fields, words):
    assert words in error_of(http.post(PATH, json={"messages": USER} | fields), 400)["message"]


def test_what_reads_like_a_mark_among_arguments_is_a_word_of_the_models(http, server):
    """Cutting marks must never cut words: every turn has the ids of a whole reading, whatever was edited."""
    server.service.turns.ledger.__init__()
    mark = {"cache_control": {"type": "ephemeral"}}
    first = {"role": "user", "content": [{"type": "text", "text": "read " * 100}]}

    def called(given: dict[str, Any], is_marked: bool) -> list[dict[str, Any]]:
        call = {"type": "tool_use", "id": "a", "name": "read", "input": given}
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": "a", "content": "x"}
        return [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result | (mark if is_marked else {})]},
        ]

    plain, worded = {"n": 1}, {"n": 1} | mark
    histories = [
        [first],
        [first, *called(plain, True)],
        [first, *called(plain, False), *called(worded, True)],
        [first, *called(worded, False), *called(worded, True)],
        [first, *called(worded, True), *called(plain, True), *called(plain, True)],
        [first, *called(plain, True), *called(plain, True), *called(worded, True)],
    ]
    for history in (*histories, *histories):
        ask(http, messages=history, tools=[TOOL])
        given = server.engine.calls[-1][0]
        kept, server.service.turns.ledger = server.service.turns.ledger, type(server.service.turns.ledger)()
        ask(http, messages=history, tools=[TOOL])
        server.service.turns.ledger = kept
        assert given == server.engine.calls[-1][0]
