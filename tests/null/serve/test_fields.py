# SPDX-License-Identifier: MIT
"""Every field of every body: documented, and harmless whatever it holds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import Script

from tokenspeed.serve.anthropic.schema import CountBody, MessagesBody
from tokenspeed.serve.openai.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tokenspeed.serve.responses.schema import ResponsesBody

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
PAGES = {MessagesBody: "messages.md", CountBody: "messages.md", ResponsesBody: "responses.md"}
LEAST = {
    "/v1/responses": (ResponsesBody, {"input": "hi"}),
    "/v1/messages": (MessagesBody, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/messages/count_tokens": (CountBody, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/chat/completions": (ChatBody, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (CompletionBody, {"prompt": "hi"}),
    "/tokenize": (TokenizeBody, {"prompt": "hi"}),
    "/detokenize": (DetokenizeBody, {"tokens": [65]}),
}
FIELDS = [(path, name) for path, (body, _) in LEAST.items() for name in body.__struct_encode_fields__]
JUNK = [
    True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.5, 1e308, "", "x", "auto", "\ud7ff\x00",
    [], [[]], [None], ["x"], [1], [1.5], [-1], [2**64], [{}], {}, {"x": 1}, {"1": 1}, {"type": "text"},
    {"type": "object"}, {"include_usage": True}, [{"role": "user"}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
    [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, {"b": None}]}}}],
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    LEAVES | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_no_value_of_a_field_is_a_server_error(http, server, path, name):
    server.engine.script = Script("a")
    body = LEAST[path][1]
    assert http.post(path, json=body | {name: None}).status_code == (400 if name in body else 200)
    for value in JUNK:
        answer = http.post(path, json=body | {name: value})
        assert answer.status_code < 500, (value, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(FIELDS), JSON, st.sampled_from(FIELDS), JSON)
def test_no_pair_of_fields_is_a_server_error(http, server, one, value, other, other_value):
    path, name = one
    body = LEAST[path][1] | {name: value, other[1]: other_value}
    answer = http.post(path, content=msgspec.json.encode(body), headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, answer.text


def page(body: type[msgspec.Struct]) -> str:
    return (REFERENCE / PAGES.get(body, "http.md")).read_text()


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_every_field_is_in_the_reference(path, name):
    assert name in page(LEAST[path][0])


@pytest.mark.parametrize("body", [ChatBody, CompletionBody, MessagesBody, ResponsesBody])
def test_every_ignored_field_is_in_the_reference_and_no_field_of_the_body(body):
    assert all(name in page(body) for name in body.ignored)
    assert not body.ignored & set(body.__struct_encode_fields__)
