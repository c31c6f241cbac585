# SPDX-License-Identifier: MIT
"""Floors, deadlines and ends of sessions from HTTP to the engine, and what a session has used on the way back."""

from __future__ import annotations

import pytest
from scripted import Script

from tokenspeed.base.errors import SetupError
from tokenspeed.obs.sample import SessionAccount
from tokenspeed.serve.sessions import tenant_floors

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hello"}]


def test_floors_and_ends_reach_the_engine_by_header_or_by_field(http, server):
    http.post(CHAT, json={"messages": USER}, headers={"X-TokenSpeed-Floor": "70", "X-TokenSpeed-Final": "1"})
    http.post(CHAT, json={"messages": USER, "floor_tps": 20.5, "final": True, "deadline_ms": 1500})
    by_header, by_field = (origin for _, _, origin in server.engine.calls[-2:])
    assert (by_header["floor_mtps"], by_header["final"], by_header["deadline_us"]) == (70_000, True, 0)
    assert (by_field["floor_mtps"], by_field["final"]) == (20_500, True)
    assert by_field["deadline_us"] - by_field["received_us"] == 1_500_000
    wrong = http.post(CHAT, json={"messages": USER, "deadline_ms": 0})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "deadline_ms")


def test_the_end_of_a_turn_says_what_the_session_waits_for(http, server):
    server.engine.script = Script("Done.")
    server.engine.rests.clear()
    http.post(CHAT, json={"messages": USER, "session_id": "s"})
    http.post(CHAT, json={"messages": USER, "session_id": "s", "final": True})
    assert server.engine.rests == [("s", "turn", None)]


def test_a_session_says_what_it_has_used_and_can_be_closed(http, server):
    assert http.get("/v1/sessions/nobody").status_code == 404
    server.engine.accounts[b"", "s/1"] = SessionAccount(
        admitted=True, requests=3, requests_live=1, prefill_ns=2_500_000, decode_ns=4_000_000, queue_us=1500,
        tokens_prompt=900, tokens_cached=600, tokens_computed=300, tokens_output=40,
        block_us=(2_000_000, 0, 1_000_000), block_tokens=64,
    )  # fmt: skip
    said = http.get("/v1/sessions/s/1").json()
    assert said["device_ms"] == {"prefill": 2.5, "decode": 4.0}
    assert said["tokens"] == {"prompt": 900, "cached": 600, "computed": 300, "output": 40}
    assert said["kv_token_s"] == {"device": 128.0, "host": 0.0, "disk": 64.0}
    assert (said["admitted"], said["requests"], said["requests_open"], said["queue_ms"]) == (True, 3, 1, 1.5)
    assert http.get("/v1/sessions/s/1", headers={"X-Cache-Salt": "other"}).status_code == 404
    assert http.delete("/v1/sessions/s/1").json()["deleted"] is True
    assert server.engine.closed == [(b"", "s/1")]


def test_floors_of_tenants_are_read_off_options():
    assert tenant_floors(["acme=70", "a=b=12.5"]) == {b"acme": 70_000, b"a=b": 12_500}
    for wrong in ("acme", "=5", "acme=fast", "acme=-1"):
        with pytest.raises(SetupError, match="tenant-floor"):
            tenant_floors([wrong])
