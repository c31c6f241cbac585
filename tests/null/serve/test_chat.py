# SPDX-License-Identifier: MIT
"""POST /v1/chat/completions: shapes, streaming equal to whole, tool calls, reasoning, sampling fields."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI
from scripted import Script

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "a.py"}}\n</tool_call>'
THOUGHT = f"<think>\nwhich file?\n</think>\n\nLooking.\n{CALL}\n{CALL}"


def ask(http, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json={"model": "demo", "messages": USER} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(http, **fields: Any) -> list[dict[str, Any]]:
    answer = http.post(
        "/v1/chat/completions", json={"model": "demo", "messages": USER, "stream": True} | fields
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert frames[-1] == "[DONE]"
    return [json.loads(frame) for frame in frames[:-1]]


def joined(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """A stream's deltas as the message they make."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            message["finish"] = choice["finish_reason"] or message.get("finish")
    return message


def test_whole_answer_has_the_openai_shape(http, server):
    server.engine.script = Script("Hello there.", cached_tokens=3)
    document = ask(http)
    assert document["object"] == "chat.completion"
    assert document["model"] == "demo"
    choice = document["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello there."}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    usage = document["usage"]
    prompt, sampling, _ = server.engine.calls[0]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    assert set(server.service.text.stop_ids) == set(sampling.stop_ids)


@pytest.mark.parametrize("per_delta", [1, 3, 1000])
def test_streamed_answer_joins_to_the_whole_one(http, server, per_delta):
    server.engine.script = Script(THOUGHT, per_delta=per_delta)
    whole = ask(http, tools=[TOOL])["choices"][0]
    message = whole["message"]
    assert message["reasoning_content"] == "which file?"
    assert message["content"] == "Looking."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "read", "arguments": '{"path": "a.py"}'}
    ] * 2
    assert whole["finish_reason"] == "tool_calls"
    chunks = stream(http, tools=[TOOL])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    together = joined(chunks)
    assert together["content"] == message["content"]
    assert together["reasoning_content"] == message["reasoning_content"]
    assert together["tool_calls"] == [call["function"] for call in message["tool_calls"]]
    assert together["finish"] == "tool_calls"
    assert sum(bool(c["choices"][0]["finish_reason"]) for c in chunks) == 1


def test_the_sdk_accumulates_a_stream_into_the_whole(server):
    server.engine.script = Script(THOUGHT)
    with httpx.Client(trust_env=False) as transport:
        client = OpenAI(base_url=server.url + "/v1", api_key="unused", http_client=transport)
        options = {"include_usage": True}
        with client.chat.completions.stream(
            model="demo", messages=USER, tools=[TOOL], stream_options=options, logprobs=True
        ) as events:
            final = events.get_final_completion()
        plain = client.chat.completions.create(model="demo", messages=USER, tools=[TOOL], logprobs=True)
    one, other = final.choices[0], plain.choices[0]
    assert one.message.content == other.message.content == "Looking."
    functions = [[call.function.model_dump() for call in c.message.tool_calls or []] for c in (one, other)]
    assert [f["arguments"] for f in functions[0]] == [f["arguments"] for f in functions[1]]
    assert one.finish_reason == other.finish_reason == "tool_calls"
    assert len(one.logprobs.content) == len(other.logprobs.content)
    assert final.usage == plain.usage


def test_tool_calls_without_text_have_null_content(http, server):
    server.engine.script = Script(CALL)
    message = ask(http, tools=[TOOL])["choices"][0]["message"]
    assert message["content"] is None
    assert len({call["id"] for call in message["tool_calls"]}) == 1


def test_tool_markup_is_plain_text_where_no_tools_are_offered(http, server):
    server.engine.script = Script(CALL)
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        choice = ask(http, **fields)["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": CALL}
        assert choice["finish_reason"] == "stop"
    with_none, without = (call[0] for call in reversed(server.engine.calls))
    assert with_none == without


def test_truncated_call_is_length_with_true_partial_arguments(http, server):
    server.engine.script = Script('<tool_call>\n{"name": "read", "arguments": {"path": "a', "length")
    choice = ask(http, tools=[TOOL])["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"path": "a'


def test_one_call_only_where_parallel_calls_are_off(http, server):
    server.engine.script = Script(THOUGHT, hangs=True)
    choice = ask(http, tools=[TOOL], parallel_tool_calls=False)["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert server.engine.aborts.get(timeout=5) == "stop_string"


def test_usage_chunk_comes_last_and_only_when_asked(http):
    assert all("usage" not in chunk for chunk in stream(http))
    chunks = stream(http, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_stop_string_ends_the_answer_and_aborts_the_request(http, server):
    server.engine.script = Script("one two three four", hangs=True, per_delta=100)
    document = ask(http, stop=["three", "zzz"], return_token_ids=True)
    choice = document["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two ", "stop")
    assert server.engine.aborts.get(timeout=5) == "stop_string"
    text = server.service.text.tokenizer.decode(choice["token_ids"])
    assert text.endswith("three")
    assert document["usage"]["completion_tokens"] == len(choice["token_ids"])
    shown = ask(http, stop="three", include_stop_str_in_output=True)["choices"][0]
    assert shown["message"]["content"] == "one two three"


def test_return_token_ids_streams_every_id_once(http, server):
    chunks = stream(http, return_token_ids=True)
    streamed = [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", [])]
    assert streamed == ask(http, return_token_ids=True)["choices"][0]["token_ids"]
    assert streamed[-1] == server.service.text.stop_ids[0]


def test_n_answers_with_one_seed_get_seeds_of_their_own(http, server):
    document = ask(http, n=3, seed=7)
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2]
    assert [call[1].seed for call in server.engine.calls] == [7, 8, 9]
    assert document["usage"]["prompt_tokens"] == len(server.engine.calls[0][0])
    chunks = stream(http, n=2)
    assert joined(chunks, 1)["content"] == joined(chunks, 0)["content"] == "Hello there."


def test_logprobs_have_the_chat_shape(http, server):
    choice = ask(http, logprobs=True, top_logprobs=2)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).startswith("Hello there.")
    assert bytes(entries[0]["bytes"]).decode() == entries[0]["token"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * len(entries)
    chunks = stream(http, logprobs=True, top_logprobs=2)
    streamed = [
        e for c in chunks if c["choices"][0]["logprobs"] for e in c["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == entries


def test_every_sampling_field_reaches_the_engine(http, server):
    ask(
        http, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=0.5, frequency_penalty=-0.5,
        repetition_penalty=1.1, seed=-3, max_completion_tokens=9, min_tokens=2, stop_token_ids=[5],
        ignore_eos=True, logit_bias={"7": -100, "8": 3.5}, priority=2, cache_salt="team", session_id="s1",
    )  # fmt: skip
    _, sampling, origin = server.engine.calls[0]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.presence, sampling.frequency, sampling.repetition) == (0.5, -0.5, 1.1)
    assert (sampling.tokens_max, sampling.tokens_min, sampling.stop_ids) == (9, 2, (5,))
    assert sampling.logit_bias == {7: -100.0, 8: 3.5}
    assert sampling.seed >= 0
    assert (origin["salt"], origin["priority"], origin["session"]) == (b"team", 2, "s1")


def test_checkpoint_recommendations_fill_unset_fields_only(http, server):  # R10
    defaults = server.service.text.defaults
    ask(http)
    ask(http, temperature=0)
    ask(http, top_k=-1)
    first, second, third = (call[1] for call in server.engine.calls)
    assert (first.temperature, first.top_p) == (defaults.temperature, defaults.top_p)
    assert (second.temperature, second.top_p) == (0, defaults.top_p)
    assert third.top_k == 0


def test_session_header_wins(http, server):
    http.post(
        "/v1/chat/completions", json={"messages": USER, "session_id": "b"}, headers={"X-Session-ID": "a"}
    )
    assert server.engine.calls[0][2]["session"] == "a"


def test_trace_of_the_caller_is_passed_on(http, server):
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for headers in ({"traceparent": header}, {}):
        http.post("/v1/chat/completions", json={"messages": USER}, headers=headers)
    assert [origin["traceparent"] for _, _, origin in server.engine.calls] == [header, None]


def test_history_of_an_agent_is_rendered_as_the_template_wants_it(http, server):
    def prompt(messages: list[Any]) -> str:
        server.engine.calls.clear()
        ask(http, messages=messages, tools=[TOOL])
        return server.service.text.tokenizer.decode(server.engine.calls[0][0])

    call = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": '{"path":"a.py"}'}}
    history: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        *USER,
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "x = 1"}]},
    ]
    text = prompt(history)
    assert "<|im_start|>system\nBe brief." in text
    assert '{"name": "read", "arguments": {"path": "a.py"}}' in text
    assert "hm" in text
    assert "<tool_response>\nx = 1\n</tool_response>" in text
    history[2] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [call | {"function": {"name": "read", "arguments": "{oops"}}],
    }
    assert '"arguments": {oops}' in prompt(history)
    history[2] = {"role": "assistant", "tool_calls": [call | {"function": {"name": "read", "arguments": ""}}]}
    assert '"arguments": {}' in prompt(history)


def test_prompt_cut_short_by_max_tokens_finishes_with_length(http):
    assert ask(http, max_tokens=1)["choices"][0]["finish_reason"] == "length"


def test_a_final_message_is_gone_on_with(http, server):
    begun = [*USER, {"role": "assistant", "content": "The answer is"}]
    ask(http, messages=begun, continue_final_message=True, add_generation_prompt=False)
    text = server.service.text.tokenizer.decode(server.engine.calls[-1][0])
    assert text.endswith("The answer is")
    answer = http.post("/v1/messages", json={"messages": begun})
    assert answer.status_code == 200
    assert server.engine.calls[-1][0] == server.engine.calls[-2][0]


def test_effort_none_turns_thinking_off(http, server):
    ask(http, reasoning_effort="none")
    ask(http, chat_template_kwargs={"enable_thinking": False, "thinking": False})
    assert server.engine.calls[0][0] == server.engine.calls[1][0]
