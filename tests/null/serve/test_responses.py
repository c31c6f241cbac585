# SPDX-License-Identifier: MIT
"""POST /v1/responses: items in and out, events, tools of every kind, answers kept; with the openai SDK as a client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI
from scripted import CONTEXT_TOKENS, Script

from tokenspeed.base.errors import CapacityError, EngineDeadError
from tokenspeed.serve import answer as answer_module
from tokenspeed.serve.responses.custom import InputReader
from tokenspeed.serve.responses.store import Kept, Store

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}
PATCH = {"type": "custom", "name": "patch", "description": "Edits.", "format": GRAMMAR}
FIND = {"type": "function", "name": "find"}
SPACE = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [FIND]}
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "a.py"}}\n</tool_call>'
THOUGHT = f"<think>\nwhich file?\n</think>\n\nLooking.\n{CALL}\n{CALL}"


def ask(http, **fields: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"model": "demo", "input": "hi"} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(http, **fields: Any) -> list[dict[str, Any]]:
    answer = http.post(PATH, json={"model": "demo", "input": "hi", "stream": True} | fields)
    assert answer.status_code == 200, answer.text
    events = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name.removeprefix("event: ") == events[-1]["type"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def prompt_text(server) -> str:
    return server.service.text.tokenizer.decode(server.engine.calls[-1][0], skip_special_tokens=False)


def rendered(server, messages: list[dict[str, Any]], **options: Any) -> str:
    return server.service.text.text_of_chat(messages, **options)


def bare(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items without what is drawn for each."""
    return [
        {k: v for k, v in item.items() if k not in ("id", "call_id", "encrypted_content")} for item in items
    ]


def test_whole_answer_has_the_shape_of_a_response(http, server):
    server.engine.script = Script(THOUGHT, cached_tokens=3)
    document = ask(http, tools=[TOOL], instructions="Be brief.", metadata={"a": "b"})
    assert (document["object"], document["status"], document["model"]) == ("response", "completed", "demo")
    reasoning, message, *calls = document["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "which file?"}]
    assert (message["role"], message["content"][0]["text"]) == ("assistant", "Looking.")
    assert [(call["type"], call["name"]) for call in calls] == [("function_call", "read")] * 2
    assert [json.loads(call["arguments"]) for call in calls] == [{"path": "a.py"}] * 2
    assert len({call["call_id"] for call in calls}) == 2
    usage = document["usage"]
    assert usage["input_tokens"] == len(server.engine.calls[0][0])
    assert usage["input_tokens_details"] == {"cached_tokens": 3}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    assert (document["instructions"], document["metadata"], document["tools"]) == (
        "Be brief.",
        {"a": "b"},
        [TOOL],
    )


@pytest.mark.parametrize("per_delta", [1, 3, 1000])
def test_streamed_answer_joins_to_the_whole_one(http, server, per_delta):
    call = CALL.replace("read", "crm__find")
    custom = '<tool_call>\n{"name": "patch", "arguments": {"input": "*** \\"a\\" \\ud83d\\ude00\\n"}}\n</tool_call>'
    server.engine.script = Script(f"{THOUGHT}\n{call}\n{custom}", per_delta=per_delta)
    fields: dict[str, Any] = {"tools": [TOOL, PATCH, SPACE, {"type": "web_search"}]}
    whole = ask(http, **fields)
    assert whole["output"][-1]["input"] == '*** "a" 😀\n'
    assert (whole["output"][-2]["name"], whole["output"][-2]["namespace"]) == ("find", "crm")
    events = stream(http, **fields)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed"
    assert bare(events[-1]["response"]["output"]) == bare(whole["output"])
    counts = ("input_tokens", "output_tokens", "total_tokens")
    assert [events[-1]["response"]["usage"][key] for key in counts] == [whole["usage"][key] for key in counts]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    for index, item in enumerate(done):
        own = [event for event in events if event.get("output_index") == index]
        assert (own[0]["type"], own[-1]["type"]) == (
            "response.output_item.added",
            "response.output_item.done",
        )
        assert all(event["item_id"] == item["id"] for event in own[1:-1])
        text = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        match item["type"]:
            case "function_call":
                assert text == item["arguments"]
            case "custom_tool_call":
                assert text == item["input"]
            case _:
                assert text == item["content"][0]["text"]


def test_the_sdk_accumulates_a_stream_into_the_whole(server):
    server.engine.script = Script(THOUGHT)
    with httpx.Client(trust_env=False) as transport:
        client = OpenAI(base_url=server.url + "/v1", api_key="unused", http_client=transport, max_retries=0)
        with client.responses.stream(model="demo", input="hi", tools=[TOOL]) as events:
            final = events.get_final_response()
        plain = client.responses.create(model="demo", input="hi", tools=[TOOL])
        assert final.output_text == plain.output_text == "Looking."
        assert [item.type for item in final.output] == [
            "reasoning",
            "message",
            "function_call",
            "function_call",
        ]
        more = client.responses.create(model="demo", input="and now?", previous_response_id=plain.id)
        assert client.responses.retrieve(more.id).output_text == more.output_text
        client.responses.delete(more.id)
        assert http_status(server, more.id) == 404


def http_status(server, answer_id: str) -> int:
    return httpx.get(f"{server.url}{PATH}/{answer_id}", trust_env=False).status_code


def test_every_item_reaches_the_template_in_order(http, server):
    items = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "x-anthropic-billing-header: a\nRules."}],
        },
        {"type": "message", "role": "user", "content": "look"},
        {
            "type": "reasoning",
            "id": "r",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {
            "type": "function_call",
            "call_id": "a",
            "name": "find",
            "namespace": "crm",
            "arguments": '{"n": 1}',
        },
        {"type": "web_search_call", "id": "w"},
        {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "*** x"},
        {"type": "function_call", "call_id": "c", "name": "read", "arguments": "not json"},
        {"type": "function_call_output", "call_id": "a", "output": "found"},
        {
            "type": "custom_tool_call_output",
            "call_id": "b",
            "output": [{"type": "input_text", "text": "done"}],
        },
        {"type": "function_call_output", "call_id": "c", "output": ""},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go on"}]},
    ]
    ask(http, input=items, tools=[TOOL, PATCH, SPACE], instructions="Be brief.")
    functions = [
        {"name": "read", "description": "", "parameters": TOOL["parameters"]},
        {"name": "patch", "description": "Edits.", "parameters": {
            "type": "object",
            "properties": {"input": {"type": "string", "description": (
                "The whole input of the tool, which follows this lark grammar:\nstart: /x/")}},
            "required": ["input"]}},
        {"name": "crm__find", "description": "Customers.", "parameters": {"type": "object", "properties": {}}},
    ]  # fmt: skip
    names = {"a": ("crm__find", {"n": 1}), "b": ("patch", {"input": "*** x"}), "c": ("read", "not json")}
    calls = [
        {"id": key, "type": "function", "function": {"name": name, "arguments": given}}
        for key, (name, given) in names.items()
    ]
    wanted = [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": calls},
        *(
            {"role": "tool", "tool_call_id": k, "content": t}
            for k, t in (("a", "found"), ("b", "done"), ("c", ""))
        ),
        {"role": "user", "content": "go on"},
    ]
    tools = [{"type": "function", "function": function} for function in functions]
    assert prompt_text(server) == rendered(server, wanted, tools=tools)


def test_encrypted_reasoning_comes_back_as_it_was(http, server):
    server.engine.script = Script("<think>\nsecret plan\n</think>\n\nDone.")
    document = ask(http, include=["reasoning.encrypted_content"], store=False)
    reasoning, message = document["output"]
    assert "secret" not in reasoning["encrypted_content"]
    sent_back = {key: reasoning[key] for key in ("type", "id", "summary", "encrypted_content")}
    asked = {"role": "user", "content": "hi"}
    ask(http, input=[asked, sent_back, message, asked])
    answer = {"role": "assistant", "content": "Done.", "reasoning_content": "secret plan"}
    assert prompt_text(server) == rendered(server, [asked, answer, asked])
    forged = sent_back | {"encrypted_content": "gAAAAA-of-another-server"}
    ask(http, input=[asked, forged, message, asked])
    del answer["reasoning_content"]
    assert prompt_text(server) == rendered(server, [asked, answer, asked])


def test_a_request_goes_on_from_a_kept_answer(http, server):
    server.service.turns.ledger.__init__()
    server.engine.script = Script(f"Looking.\n{CALL}")
    first = ask(http, input="read it " * 50, tools=[TOOL])
    output = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "x"}
    before = count(http, "appended")
    second = ask(http, input=[output], tools=[TOOL], previous_response_id=first["id"])
    assert count(http, "appended") == before + 1
    linked = server.engine.calls[-1][0]
    server.service.turns.ledger.__init__()
    everything = [{"role": "user", "content": "read it " * 50}, *first["output"], output]
    ask(http, input=everything, tools=[TOOL])
    assert server.engine.calls[-1][0] == linked
    third = ask(http, input="thanks", previous_response_id=second["id"])
    assert http.get(f"{PATH}/{third['id']}").json() == third
    assert http.delete(f"{PATH}/{third['id']}").json()["deleted"] is True
    for gone in (third["id"], "resp_never", ask(http, store=False)["id"]):
        error = error_of(http.post(PATH, json={"input": "x", "previous_response_id": gone}), 400)
        assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
        assert error_of(http.get(f"{PATH}/{gone}"), 404)["code"] == "unknown_response"
        assert error_of(http.delete(f"{PATH}/{gone}"), 404)["code"] == "unknown_response"
    other = {"input": "x", "previous_response_id": second["id"], "cache_salt": "other"}
    assert error_of(http.post(PATH, json=other), 400)["param"] == "previous_response_id"


def count(http, effort: str) -> float:
    series = f'tokenspeed_chat_prompts_total{{effort="{effort}"}} '
    return next(float(x.split()[-1]) for x in http.get("/metrics").text.splitlines() if x.startswith(series))


def test_a_session_that_sends_everything_costs_what_is_new(http, server):
    server.service.turns.ledger.__init__()
    server.engine.script = Script(f"<think>\nhm\n</think>\n\nLooking.\n{CALL}")
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "Rules. " * 50},
        {"role": "user", "content": "go"},
    ]
    efforts = []
    for turn in range(4):
        before = {name: count(http, name) for name in ("whole", "compared", "appended")}
        document = ask(http, input=items, tools=[TOOL], instructions="Be brief.", store=False)
        efforts += [name for name in before if count(http, name) > before[name]]
        call = document["output"][-1]["call_id"]
        items += [
            *document["output"],
            {"type": "function_call_output", "call_id": call, "output": f"x = {turn}"},
        ]
    assert efforts == ["whole", "appended", "appended", "appended"]


def test_the_store_is_bounded():
    store = Store(bytes_max=5000)
    for index in range(10):
        store.keep(str(index), Kept(b"{}", b"x" * 500, b""))
    assert store.bytes_held <= 5000
    assert store.get("9") is not None
    assert store.get("0") is None
    store.keep("huge", Kept(b"", b"x" * 9000, b""))
    assert store.get("huge") is None


@pytest.mark.parametrize("cut", range(1, 9))
def test_custom_input_is_read_alike_under_every_chunking(cut):
    for text, wanted in (
        ('{"input": "a\\n\\"b\\" \\u00e9\\ud83d\\ude00 \\\\"}', 'a\n"b" é😀 \\'),
        ('{"input": ""}', ""),
        ('{"other": "a"}', '{"other": "a"}'),
        ('{"input": "cut \\u00', "cut "),
        ("plain", "plain"),
    ):
        reader = InputReader()
        pieces = [reader.feed(text[at : at + cut]) for at in range(0, len(text), cut)]
        assert "".join([*pieces, reader.end()]) == wanted


def test_cut_answers_are_incomplete(http, server):
    server.engine.script = Script('<tool_call>\n{"name": "read", "arguments": {"path": "a', "length")
    document = ask(http, tools=[TOOL])
    assert (document["status"], document["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    call = document["output"][0]
    assert (call["arguments"], call["status"]) == ('{"path": "a', "incomplete")
    assert stream(http, tools=[TOOL])[-1]["type"] == "response.incomplete"
    server.engine.script = Script("one two three four")
    assert ask(http, max_output_tokens=2)["status"] == "incomplete"


def error_of(answer, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "hologram"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"max_output_tokens": 0}, "max_tokens"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"session_id": "x" * 999}, "session_id"),
    ],
)
def test_wrong_fields_are_refused_by_name(http, server, fields, param):
    assert error_of(http.post(PATH, json={"input": "hi"} | fields), 400)["param"] == param
    assert not server.engine.calls


def test_overflow_is_a_400_and_in_a_stream_its_terminal_event(http, server):
    long = "word " * (2 * CONTEXT_TOKENS)
    assert error_of(http.post(PATH, json={"input": long}), 400)["code"] == "context_length_exceeded"
    events = stream(http, input=long)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.failed",
    ]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
    assert not server.engine.calls


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (EngineDeadError("gone"), "server_error"),
        (CapacityError("full", retry_after_s=1), "rate_limit_exceeded"),
    ],
)
def test_failures_on_the_way_end_streams_with_response_failed(http, server, failure, code):
    server.engine.script = Script("some", failure=failure)
    *_, item, last = stream(http)
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == code
    assert (item["type"], item["item"]["status"]) == ("response.output_item.done", "incomplete")


def test_a_silent_engine_is_said_to_be_in_progress(http, server, monkeypatch):
    monkeypatch.setattr(answer_module, "HEARTBEAT_S", 0.05)
    server.engine.script = Script("some", hangs=True)
    with http.stream("POST", PATH, json={"input": "x", "stream": True}) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("event"))
        names = [next(lines) for _ in range(8)]
    assert names[-1] == names[-2] == "event: response.in_progress"
    assert server.engine.aborts.get(timeout=5) == "client"


SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL, SPACE], "tool_choice": {"type": "function", "name": "find", "namespace": "crm"}},
        {"tools": [TOOL, PATCH], "tool_choice": {"type": "custom", "name": "patch"}},
        {
            "tools": [TOOL, PATCH],
            "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
        },
        {"tools": [TOOL | {"strict": True}]},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
        {"text": {"format": {"type": "json_object"}}},
    ],
)
def test_forms_reach_the_engine_as_constraints(http, server, fields):
    ask(http, **fields)
    assert server.engine.calls[-1][2]["constraint"] is not None
    ask(http, tools=[TOOL, PATCH, SPACE])
    assert server.engine.calls[-1][2]["constraint"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ],
)
def test_forms_that_cannot_be_are_refused_by_name(http, fields, param):
    assert error_of(http.post(PATH, json={"input": "hi"} | fields), 400)["param"] == param
