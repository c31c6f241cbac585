# SPDX-License-Identifier: MIT
"""For every field of every body: values that must have an effect or be refused by name, with what goes beside."""

from __future__ import annotations

from typing import Any

from tokenspeed.serve.anthropic.schema import CountBody, MessagesBody
from tokenspeed.serve.openai.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tokenspeed.serve.responses.schema import ResponsesBody

USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
FLAT = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}
LEAST: dict[str, Any] = {"temperature": 0.5}

BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, LEAST | {"messages": USER}),
    "/v1/completions": (CompletionBody, LEAST | {"prompt": "hi"}),
    "/v1/messages": (MessagesBody, LEAST | {"messages": USER}),
    "/v1/messages/count_tokens": (CountBody, {"messages": USER}),
    "/v1/responses": (ResponsesBody, LEAST | {"input": "hi"}),
    "/tokenize": (TokenizeBody, {"prompt": "hi"}),
    "/detokenize": (DetokenizeBody, {"tokens": [65]}),
}
"""Each path's type, and the least body it takes."""


def one(**fields: Any) -> list[dict[str, Any]]:
    return [fields]


THINKING_OFF = {"enable_thinking": False}
COMMON: dict[str, list[dict[str, Any]]] = {
    "model": one(model="another"),
    "messages": one(messages=[{"role": "user", "content": "other words"}]),
    "stream": one(stream=True),
    "temperature": one(temperature=0.25),
    "top_p": one(top_p=0.5),
    "top_k": one(top_k=5),
    "cache_salt": one(cache_salt="s"),
    "session_id": one(session_id="s"),
    "priority": one(priority=2),
    "floor_tps": one(floor_tps=70.0),
    "deadline_ms": one(deadline_ms=60_000),
    "final": one(final=True),
    "chat_template_kwargs": one(chat_template_kwargs=THINKING_OFF),
}
OPENAI: dict[str, list[dict[str, Any]]] = {
    "stream_options": [
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True}},
    ],
    "n": one(n=2),
    "max_tokens": one(max_tokens=2),
    "min_tokens": one(min_tokens=2),
    "min_p": one(min_p=0.5),
    "presence_penalty": one(presence_penalty=1),
    "frequency_penalty": one(frequency_penalty=1),
    "repetition_penalty": one(repetition_penalty=1.5),
    "logit_bias": one(logit_bias={"65": 5}),
    "seed": one(seed=7),
    "stop": one(stop="two"),
    "stop_token_ids": one(stop_token_ids=[65]),
    "include_stop_str_in_output": one(stop="two", include_stop_str_in_output=True),
    "ignore_eos": one(ignore_eos=True),
    "skip_special_tokens": one(skip_special_tokens=False),
    "return_token_ids": one(return_token_ids=True),
    "response_format": one(
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    ),
    "structured_outputs": one(structured_outputs={"regex": "a+"}),
    "prompt_cache_key": one(prompt_cache_key="k"),
    "best_of": one(best_of=3),
    "guided_json": one(guided_json=SCHEMA),
    "guided_regex": one(guided_regex="a"),
    "guided_grammar": one(guided_grammar="start: /a/"),
    "guided_choice": one(guided_choice=["a"]),
}
CHAT: dict[str, list[dict[str, Any]]] = {
    "max_completion_tokens": one(max_completion_tokens=2),
    "logprobs": one(logprobs=True),
    "top_logprobs": [{"logprobs": True, "top_logprobs": 2}, {"top_logprobs": 2}],
    "tools": one(tools=[FUNCTION]),
    "tool_choice": [{"tools": [FUNCTION], "tool_choice": choice} for choice in ("required", "none")],
    "parallel_tool_calls": one(tools=[FUNCTION], parallel_tool_calls=False),
    "reasoning_effort": one(reasoning_effort="none"),
    "add_generation_prompt": one(add_generation_prompt=False),
    "continue_final_message": one(
        messages=[*USER, {"role": "assistant", "content": "So"}], continue_final_message=True
    ),
    "functions": one(functions=[{}]),
    "function_call": one(function_call="auto"),
    "audio": one(audio={}),
    "modalities": one(modalities=["audio"]),
    "web_search_options": one(web_search_options={}),
}
COMPLETION: dict[str, list[dict[str, Any]]] = {
    "prompt": one(prompt="other"),
    "logprobs": one(logprobs=2),
    "echo": one(echo=True),
    "add_special_tokens": [],
    "forced_token_ids": one(forced_token_ids=[65, 66]),
    "suffix": one(suffix="after"),
}
ANTHROPIC: dict[str, list[dict[str, Any]]] = {
    "system": one(system="Be brief."),
    "max_tokens": one(max_tokens=2),
    "stop_sequences": one(stop_sequences=["two"]),
    "tools": one(tools=[TOOL]),
    "tool_choice": [
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
    ],
    "thinking": [
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "adaptive", "display": "omitted"}},
    ],
    "output_config": one(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}),
    "output_format": one(output_format={"type": "json_schema", "schema": SCHEMA}),
    "metadata": one(metadata={"user_id": "u"}),
    "cache_control": one(cache_control={"type": "ephemeral", "ttl": "1h"}),
    "mcp_servers": one(mcp_servers=[{}]),
}
COUNT: dict[str, list[dict[str, Any]]] = {
    "tool_choice": one(tools=[TOOL], tool_choice={"type": "none"}),
    "thinking": one(thinking={"type": "disabled"}),
    "output_config": one(output_config={"effort": "low"}),
}
RESPONSES: dict[str, list[dict[str, Any]]] = {
    "input": one(input=[{"role": "user", "content": "other words"}]),
    "instructions": one(instructions="Be brief."),
    "previous_response_id": one(previous_response_id="resp_unknown"),
    "store": one(store=False),
    "max_output_tokens": one(max_output_tokens=2),
    "tools": one(tools=[FLAT]),
    "tool_choice": [{"tools": [FLAT], "tool_choice": choice} for choice in ("required", "none")],
    "parallel_tool_calls": one(tools=[FLAT], parallel_tool_calls=False),
    "reasoning": one(reasoning={"effort": "none"}),
    "text": one(text={"format": {"type": "json_object"}}),
    "include": one(include=["reasoning.encrypted_content"]),
    "metadata": one(metadata={"a": "b"}),
    "prompt_cache_key": one(prompt_cache_key="k"),
    "background": one(background=True),
    "conversation": one(conversation="c"),
    "prompt": one(prompt={}),
    "top_logprobs": one(top_logprobs=2),
}
TOKENIZE: dict[str, list[dict[str, Any]]] = {
    "prompt": one(prompt="other"),
    "messages": one(messages=USER),
    "tools": one(prompt=None, messages=USER, tools=[FUNCTION]),
    "chat_template_kwargs": one(prompt=None, messages=USER, chat_template_kwargs=THINKING_OFF),
    "add_special_tokens": [],
    "add_generation_prompt": one(prompt=None, messages=USER, add_generation_prompt=False),
    "return_token_strs": one(return_token_strs=True),
}
DETOKENIZE: dict[str, list[dict[str, Any]]] = {
    "tokens": one(tokens=[66]),
    "skip_special_tokens": one(tokens=[8184], skip_special_tokens=True),
}
VALUES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "*": COMMON,
    "/v1/chat/completions": OPENAI | CHAT,
    "/v1/completions": OPENAI | COMPLETION,
    "/v1/messages": ANTHROPIC,
    "/v1/messages/count_tokens": ANTHROPIC | COUNT,
    "/v1/responses": RESPONSES,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
"""By path and field; an empty list is a field that only some models can show the effect of."""
