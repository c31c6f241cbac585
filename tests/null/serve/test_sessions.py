# SPDX-License-Identifier: MIT
"""Sessions: who names them, in which order; hints; and those that nobody names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import Script

from tokenspeed.serve.sessions import Session, session_of

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("headers", "fields", "wanted"),
    [
        ({}, {}, Session()),
        ({"x-session-id": "h"}, {"session_id": "b", "cache_key": "k"}, Session("h")),
        ({"x-claude-code-session-id": "c"}, {"session_id": "b"}, Session("b")),
        ({"x-claude-code-session-id": "c"}, {"user_id": "u", "cache_key": "k"}, Session("c")),
        ({"session-id": "s", "thread-id": "t"}, {"cache_key": "k"}, Session("t", "s")),
        ({"session-id": "s", "thread-id": "s"}, {}, Session("s")),
        ({"session-id": "s"}, {"cache_key": "k"}, Session("s")),
        ({}, {"user_id": "user_1f_account_2e_session_3d-4c", "cache_key": "k"}, Session("3d-4c")),
        ({}, {"user_id": json.dumps({"device_id": "d", "session_id": "x"})}, Session("x")),
        ({}, {"user_id": "{broken"}, Session("{broken")),
        ({}, {"user_id": "someone"}, Session("someone")),
        ({}, {"cache_key": "k"}, Session("k")),
        ({"x-session-id": "x" * 999}, {}, Session("x" * 256)),
        ({"x-session-floor": "70.5", "x-session-final": "true"}, {}, Session(floor_mtps=70_500, final=True)),
        ({"x-session-floor": "nan", "x-session-final": "no"}, {}, Session()),
        ({"x-session-floor": "7"}, {"floor_tps": 100.0, "final": False, "priority": 2, "retain_us": 9},
         Session(priority=2, floor_mtps=100_000, retain_us=9)),
    ],
)  # fmt: skip
def test_r13_session_identity_is_read_off_headers_and_fields(headers, fields: dict[str, Any], wanted):
    assert session_of(headers, **fields) == wanted


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER, "prompt_cache_key": "k"}),
        ("/v1/completions", {"prompt": "hi", "prompt_cache_key": "k"}),
        ("/v1/responses", {"input": "hi", "prompt_cache_key": "k"}),
        ("/v1/messages", {"messages": USER, "metadata": {"user_id": "k"}}),
    ],
)
def test_r13_every_dialect_hands_the_session_to_the_engine(http, server, path, body):
    http.post(path, json=body)
    http.post(path, json=body | {"session_id": "s", "priority": 3})
    http.post(path, json=body, headers={"X-Session-ID": "h"})
    origins = [origin for _, _, origin in server.engine.calls]
    assert [origin["session"] for origin in origins] == ["k", "s", "h"]
    assert origins[1]["priority"] == 3
    for name, value in (("priority", 2**40), ("floor_tps", -1), ("session_id", "x" * 999)):
        answer = http.post(path, json=body | {name: value})
        assert (answer.status_code, name in answer.text) == (400, True)


def test_r13_a_session_without_a_name_is_inferred_by_its_prompt(http, server):
    server.service.turns.ledger.__init__()
    server.engine.script = Script("Yes.")

    def grown(first: str) -> list[str]:
        messages = [{"role": "user", "content": first * 40}]
        for _ in range(3):
            answer = http.post("/v1/chat/completions", json={"messages": messages}).json()
            messages += [answer["choices"][0]["message"], *USER]
        return [origin["session"] for _, _, origin in server.engine.calls[-3:]]

    one, other = grown("one thing "), grown("another ")
    assert len(set(one)) == len(set(other)) == 1
    assert one[0] != other[0]
    assert one[0].startswith("~")
