# SPDX-License-Identifier: MIT
"""Messages and responses on the whole engine: the bundled model, the real core, both SDKs as clients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from openai import OpenAI
from test_http import Server, running, until

LONG = "Read this.\n" + "x = 1\n" * 200
TOOL = {"name": "read", "description": "Reads.", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def model(server: Server) -> str:
    headers = {"anthropic-version": "2023-06-01"}
    page = httpx.get(server.url + "/v1/models", headers=headers, trust_env=False).json()
    assert page["data"][0]["type"] == "model"
    return page["first_id"]


def post(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(server.url + path, json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_messages_stream_what_they_answer_whole_and_hit_the_cache(server, model):
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
        asked: list[Any] = [{"role": "user", "content": LONG}]
        fields: dict[str, Any] = {"model": model, "max_tokens": 24, "tools": [TOOL], "system": "Be brief."}
        fields["extra_body"] = {"temperature": 0}
        whole = client.messages.create(messages=asked, **fields)
        with client.messages.stream(messages=asked, **fields) as events:
            streamed = events.get_final_message()
        strip = {"signature"}
        assert [b.model_dump(exclude=strip) for b in streamed.content] == [
            b.model_dump(exclude=strip) for b in whole.content
        ]
        assert streamed.stop_reason == whole.stop_reason
        assert streamed.usage.cache_read_input_tokens >= 128
        total = streamed.usage.input_tokens + streamed.usage.cache_read_input_tokens
        assert total == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
        counted = client.messages.count_tokens(
            model=model, messages=asked, tools=[TOOL], system="Be brief."
        ).input_tokens
        assert counted == total
        asked += [
            {"role": "assistant", "content": whole.content or "."},
            {"role": "user", "content": "Go on."},
        ]
        more = client.messages.create(messages=asked, **fields)
        assert more.usage.cache_read_input_tokens >= 128
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 4095 maximum"):
            client.messages.create(messages=[{"role": "user", "content": "word " * 9000}], **fields)


def test_responses_stream_what_they_answer_whole_and_go_on(server, model):
    with httpx.Client(trust_env=False) as transport:
        client = OpenAI(base_url=server.url + "/v1", api_key="unused", http_client=transport, max_retries=0)
        fields: dict[str, Any] = {"model": model, "max_output_tokens": 24, "temperature": 0}
        whole = client.responses.create(input=LONG, **fields)
        with client.responses.stream(input=LONG, **fields) as events:
            kinds = [event.type for event in events]
        assert kinds[-1] in ("response.completed", "response.incomplete")
        streamed = client.responses.create(input=LONG, **fields)
        assert streamed.output_text == whole.output_text
        assert streamed.usage is not None
        assert streamed.usage.input_tokens_details.cached_tokens >= 128
        more = client.responses.create(input="Go on.", previous_response_id=whole.id, **fields)
        assert more.usage is not None
        assert more.usage.input_tokens_details.cached_tokens >= 128


def test_echoed_prompts_have_their_log_probabilities(server):
    """Those of the model itself: the same that an answer of the same tokens would have."""
    ids = post(server, "/tokenize", prompt="def add(a, b):")["tokens"]
    fields = {"prompt": ids, "echo": True, "logprobs": 2, "temperature": 0, "max_tokens": 3}
    both = post(server, "/v1/completions", **fields)["choices"][0]["logprobs"]
    alone = post(server, "/v1/completions", **fields | {"max_tokens": 0})["choices"][0]["logprobs"]
    assert len(both["tokens"]) == len(ids) + 3
    assert both["token_logprobs"][0] is None
    assert all(value <= 0 for value in both["token_logprobs"][1:])
    assert alone["tokens"] == both["tokens"][: len(ids)]
    assert "".join(alone["tokens"]) == "def add(a, b):"
    last = post(server, "/v1/completions", prompt=ids[:-1], max_tokens=1, logprobs=20, temperature=0)
    likeliest = last["choices"][0]["logprobs"]["top_logprobs"][0]
    if alone["tokens"][-1] in likeliest:
        assert math.isclose(alone["token_logprobs"][-1], likeliest[alone["tokens"][-1]], abs_tol=1e-2)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 3000}),
        ("/v1/responses", {"input": LONG, "max_output_tokens": 3000}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_r9_a_dropped_connection_frees_the_engine(server, path, body, stream):
    if stream:
        with httpx.stream("POST", server.url + path, json=body | {"stream": True}, trust_env=False) as reply:
            next(reply.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + path, json=body, timeout=0.3, trust_env=False)
    until(lambda: server.gauge("tokenspeed_requests_open") == 0)
    until(lambda: server.gauge("tokenspeed_running") == 0)
    total = server.gauge("tokenspeed_blocks_total")
    until(lambda: server.gauge("tokenspeed_blocks_free") + server.gauge("tokenspeed_blocks_cached") == total)
