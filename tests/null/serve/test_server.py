# SPDX-License-Identifier: MIT
"""Routes beside generation, keys, disconnects, heartbeats, the request log, claims of ports."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
import scripted
from scripted import Script

from tokenspeed.base import config
from tokenspeed.base.errors import SetupError
from tokenspeed.engine.source import BUNDLED
from tokenspeed.serve import answer
from tokenspeed.serve import server as serving
from tokenspeed.serve.auth import check_exposure
from tokenspeed.serve.banner import banner

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "tell me a secret"}]


def test_models_lists_the_one_model(http, server):
    listed = http.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["demo"]
    assert listed["data"][0]["max_model_len"] == server.service.context_tokens_max
    said = [listed["data"][0][name] for name in ("vocab_size", "block_tokens", "device")]
    assert said == [8192, 64, "cpu: scripted"]
    assert http.get("/v1/models/demo").json() == listed["data"][0]


def test_health_and_readiness_follow_the_engine(http, server):
    assert http.get("/health").status_code == http.get("/ready").status_code == 200
    server.engine.healthy = False
    assert http.get("/health").status_code == http.get("/ready").status_code == 503
    server.engine.healthy = True
    server.service.draining = True
    try:
        assert http.get("/health").status_code == 200
        assert http.get("/ready").headers["retry-after"] == "1"
        refused = http.post(CHAT, json={"messages": USER})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    finally:
        server.service.draining = False


def test_metrics_and_version(http):
    metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "tokenspeed_time_to_first_token_seconds" in metrics.text
    assert "version" in http.get("/version").json()


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_aborts_the_request(server, stream):  # R9
    server.engine.script = Script("some words", hangs=True)
    body = json.dumps({"messages": USER, "stream": stream}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(head.encode() + body)
        if stream:
            assert b"200 OK" in client.recv(4096)
        else:
            while not server.engine.calls:
                pass
    assert server.engine.aborts.get(timeout=5) == "client"


def test_disconnect_aborts_every_choice(http, server):
    server.engine.script = Script("some words", hangs=True)
    with (
        http.stream("POST", CHAT, json={"messages": USER, "stream": True, "n": 3}) as reply,
    ):
        next(reply.iter_lines())
    assert [server.engine.aborts.get(timeout=5) for _ in range(3)] == ["client"] * 3


def test_headers_and_a_first_event_come_at_admission(http, server):  # R1
    server.engine.script = Script("", hangs=True)
    with (
        http.stream("POST", CHAT, json={"messages": USER, "stream": True}) as reply,
    ):
        first = next(reply.iter_lines())
        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"


def test_silence_is_filled_with_real_events(http, server, monkeypatch):  # R1
    monkeypatch.setattr(answer, "HEARTBEAT_S", 0.01)
    server.engine.script = Script("", hangs=True)
    with (
        http.stream("POST", CHAT, json={"messages": USER, "stream": True}) as reply,
    ):
        lines = (line for line in reply.iter_lines() if line)
        events = [json.loads(next(lines).removeprefix("data: ")) for _ in range(3)]
    assert [event["choices"][0]["delta"] for event in events[1:]] == [{}, {}]


def test_key_is_wanted_everywhere_but_for_health():  # R5
    with scripted.serving(api_key="sesame") as guarded:
        for headers in ({"Authorization": "Bearer sesame"}, {"x-api-key": "sesame"}):
            assert httpx.get(guarded.url + "/v1/models", headers=headers, trust_env=False).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "sésame".encode()}):
            refused = httpx.get(guarded.url + "/metrics", headers=headers, trust_env=False)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(guarded.url + "/health", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("[oops", 403)],
)
def test_only_local_names_are_answered_without_a_key(http, host, status):
    assert http.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("options", "admitted"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "127.1.2.3"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "example.org"}, False),
        ({"host": "0.0.0.0", "api_key": "k"}, True),
        ({"host": "0.0.0.0", "insecure": True}, True),
        ({"api_key": ""}, False),
    ],
)
def test_listening_beyond_loopback_needs_a_key(options, admitted):  # R5
    settings = config.build(**options).server
    if admitted:
        check_exposure(settings)
    else:
        with pytest.raises(SetupError, match="--api-key"):
            check_exposure(settings)


def test_request_log_keeps_bodies_that_can_be_sent_again(tmp_path):  # R12
    with scripted.serving(log_requests=str(tmp_path / "log")) as logged:
        sent = json.dumps({"messages": USER}).encode()
        httpx.post(
            logged.url + CHAT, content=sent, headers={"Content-Type": "application/json"}, trust_env=False
        )
    (kept,) = (tmp_path / "log").iterdir()
    assert kept.name.endswith("v1-chat-completions.json")
    assert kept.read_bytes() == sent
    assert kept.stat().st_mode & 0o077 == 0


def test_logs_and_metrics_hold_no_prompt_text(http, server, caplog):  # R12
    with caplog.at_level("DEBUG"):
        http.post(CHAT, json={"messages": USER})
        http.post(CHAT, json={"messages": USER, "n": -1})
    assert "secret" not in caplog.text
    assert "secret" not in http.get("/metrics").text


def test_taken_port_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"port {port} is taken"):
            serving.serve(config.build(port=port))


def test_unusable_host_is_one_clear_line():
    with pytest.raises(SetupError, match=r"not an address|cannot listen"):
        serving.serve(config.build(host="203.0.113.7", insecure=True))


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, BUNDLED.name), ({"model": str(BUNDLED)}, BUNDLED.name), ({"model": "org/name"}, "org/name"),
     ({"served_model_name": "mine"}, "mine")],
)  # fmt: skip
def test_served_name(options, name):
    assert serving.served_name(config.build(**options), BUNDLED) == name


def test_banner_holds_a_request_that_is_valid_json(server):
    settings = config.build(host="0.0.0.0", insecure=True).server
    text = banner(server.engine.ready, "demo", settings, 8123, 1.5, chat=True)
    assert "http://127.0.0.1:8123/v1/chat/completions" in text
    assert "OPENAI_BASE_URL=http://127.0.0.1:8123/v1" in text
    assert "http://127.0.0.1:8123/dashboard" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("-d "))
    assert json.loads(line.strip().removeprefix("-d '").removesuffix("'"))["model"] == "demo"
    assert "scripted" in text
    text = banner(server.engine.ready, "demo", settings, 8123, 1.5, chat=False)
    assert "http://127.0.0.1:8123/v1/completions" in text
    assert "messages" not in text
