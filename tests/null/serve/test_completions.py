# SPDX-License-Identifier: MIT
"""POST /v1/completions, /tokenize, /detokenize."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import scripted
from scripted import Script

from tokenspeed.engine import wire
from tokenspeed.text.fill import FORMATS, Fill


def ask(http, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"model": "demo"} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_text_and_ids_are_the_same_prompt(http, server):
    ids = http.post("/tokenize", json={"prompt": "def f(x):"}).json()["tokens"]
    first = ask(http, prompt="def f(x):")
    second = ask(http, prompt=ids)
    assert first["choices"][0]["text"] == second["choices"][0]["text"] == "Hello there."
    assert server.engine.calls[0][0] == server.engine.calls[1][0] == ids
    assert server.engine.calls[0][1].tokens_max == 16


def test_arrays_of_prompts_and_n_are_choices_in_order(http, server):
    document = ask(http, prompt=["a", "b b b"], n=2, echo=True)
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:1] for choice in document["choices"]] == ["a", "a", "b", "b"]
    assert document["usage"]["prompt_tokens"] == len(server.engine.calls[0][0]) + len(
        server.engine.calls[2][0]
    )
    assert len(ask(http, prompt=[[5, 6], [7]])["choices"]) == 2


def test_stream_joins_to_the_whole(http, server):
    server.engine.script = Script("héllo 你好 🙂 end")
    whole = ask(http, prompt="x", echo=True, max_tokens=64, return_token_ids=True)["choices"][0]
    body = {"prompt": "x", "echo": True, "stream": True, "max_tokens": 64}
    body |= {"return_token_ids": True, "stream_options": {"include_usage": True}}
    frames = http.post("/v1/completions", json=body).text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
    assert chunks[-1]["choices"] == []
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["text"] == "xhéllo 你好 🙂 end"
    assert [i for choice in choices for i in choice.get("token_ids", [])] == whole["token_ids"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]


def test_logprobs_have_the_completion_shape(http):
    logprobs = ask(http, prompt="x", logprobs=1)["choices"][0]["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(column) for column in logprobs.values()}) == 1
    assert logprobs["text_offset"][:2] == [0, len(logprobs["tokens"][0])]


def test_echo_without_new_tokens_needs_no_engine(http, server):
    choice = ask(http, prompt="just this", echo=True, max_tokens=0)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("just this", "length")
    assert not server.engine.calls


def test_special_tokens_are_shown_when_asked(http, server):
    server.engine.script = Script("a<|im_start|>b")
    assert ask(http, prompt="x")["choices"][0]["text"] == "ab"
    assert ask(http, prompt="x", skip_special_tokens=False)["choices"][0]["text"] == "a<|im_start|>b"


def test_tokenize_and_detokenize_are_inverse(http, server):
    text = "def f(x):\n    return 'héllo'"
    document = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert document["count"] == len(document["tokens"]) == len(document["token_strs"])
    assert document["max_model_len"] == server.service.context_tokens_max
    assert http.post("/detokenize", json={"tokens": document["tokens"]}).json() == {"prompt": text}


def test_tokenize_messages_gives_the_ids_a_chat_would_send(http, server):
    messages = [{"role": "user", "content": "hi"}]
    tokens = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    http.post("/v1/chat/completions", json={"messages": messages})
    assert server.engine.calls[-1][0] == tokens


@pytest.mark.parametrize(
    "prompt", [[], [1, "a"], ["a", 1], [[1], "a"], [None], [1.5], {"a": 1}, 3, None, [-1], [2**70], [[2**31]]]
)
def test_prompts_of_no_known_shape_are_refused(http, prompt):
    answer = http.post("/v1/completions", json={"prompt": prompt})
    assert answer.status_code == 400
    assert "prompt" in answer.json()["error"]["message"]


def test_a_recorded_answer_needs_the_operators_leave(http):
    answer = http.post("/v1/completions", json={"prompt": "x", "forced_token_ids": [65]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "forced_token_ids")
    assert "--allow-forced-output" in error["message"]


def test_a_recorded_answer_reaches_the_engine_as_raw_ids():
    with scripted.serving(allow_forced_output=True) as server:

        def post(**fields: Any) -> httpx.Response:
            body = {"prompt": "x", "forced_token_ids": [65, 66]} | fields
            return httpx.post(server.url + "/v1/completions", json=body, trust_env=False)

        assert post().status_code == post(max_tokens=2).status_code == 200
        assert wire.ids_array(server.engine.calls[0][1].forced).tolist() == [65, 66]
        for fields, param in (
            ({"forced_token_ids": []}, "forced_token_ids"),
            ({"forced_token_ids": [-1]}, "forced_token_ids[0]"),
            ({"n": 2}, "forced_token_ids"),
            ({"prompt": ["x", "y"]}, "forced_token_ids"),
            ({"stop": "a"}, "forced_token_ids"),
            ({"max_tokens": 3}, "max_tokens"),
        ):
            refused = post(**fields)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_echo_comes_alone_in_a_stream_too(http, server):
    body = {"prompt": "just this", "echo": True, "max_tokens": 0, "stream": True}
    frames = http.post("/v1/completions", json=body).text.split("\n\n")
    assert frames[-2] == "data: [DONE]"
    chunks = [json.loads(frame.removeprefix("data: "))["choices"][0] for frame in frames[:-2]]
    assert "".join(chunk["text"] for chunk in chunks) == "just this"
    assert chunks[-1]["finish_reason"] == "length"
    assert not server.engine.calls


def test_a_suffix_asks_for_the_middle(http, server, monkeypatch):
    fill = Fill(FORMATS[0], (1, 2, 3), (1, 2, 3))
    monkeypatch.setattr(Fill, "of", lambda tokenizer: fill)
    ask(http, prompt="def f(", suffix="):\n    return x")
    ids, sampling, _ = server.engine.calls[-1]
    encode = server.service.text.tokenizer.encode
    before, after = (encode(text, add_special_tokens=False) for text in ("def f(", "):\n    return x"))
    assert ids == [1, *before, 2, *after, 3]
    assert {1, 2, 3} < set(sampling.stop_ids)
    ask(http, prompt="def f(", suffix="x", ignore_eos=True)
    assert server.engine.calls[-1][1].stop_ids == ()
