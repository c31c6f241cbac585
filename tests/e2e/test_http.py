# SPDX-License-Identifier: MIT
"""The whole engine over HTTP: the bundled model, the real core, the openai SDK as client."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

USER = [{"role": "user", "content": "Write a function that reverses a list."}]
SESSIONS = Path(__file__).parents[3] / "shared" / "data" / "traces" / "dev" / "agent_sessions.jsonl.gz"
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}


@dataclass
class Server:
    """A server process."""

    process: subprocess.Popen[str]
    url: str = ""
    log: list[str] = field(default_factory=list)

    def wait_for_line(self, wanted: Callable[[str], bool]) -> str:
        """The first line of stderr that is `wanted`; fails when the process ends first."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if wanted(line):
                return line
        raise AssertionError("the server ended: " + "".join(self.log))

    def gauge(self, name: str) -> float:
        page = httpx.get(self.url + "/metrics", trust_env=False).text
        found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
        assert found, page
        return float(found[1])


@contextmanager
def running(*options: str) -> Iterator[Server]:
    """`tokenspeed serve` on a free port."""
    command = [
        sys.executable,
        "-m",
        "tokenspeed.cli",
        "serve",
        "--port",
        "0",
        "--max-model-len",
        "4096",
        *options,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server = Server(process)
    try:
        line = server.wait_for_line(lambda line: " at http://" in line)
        server.url = re.search(r"http://\S+", line)[0]  # type: ignore[index]
        server.wait_for_line(lambda line: "OPENAI_BASE_URL" in line)
        threading.Thread(target=lambda: server.log.extend(process.stderr or ()), daemon=True).start()
        yield server
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("--allow-forced-output") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with httpx.Client(trust_env=False) as transport:
        yield OpenAI(base_url=server.url + "/v1", api_key="unused", http_client=transport, max_retries=0)


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


def until(condition: Callable[[], bool], attempts: int = 2000) -> None:
    """Ask again and again, without sleeping; each question is a round trip through the server."""
    assert any(condition() for _ in range(attempts))


def test_chat_streams_what_it_answers_whole(client, model):
    fields = {"model": model, "messages": USER, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    stream = client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasoning = "".join(
        getattr(c.choices[0].delta, "reasoning_content", "") or "" for c in chunks if c.choices
    )
    assert text == whole.choices[0].message.content
    assert reasoning == getattr(whole.choices[0].message, "reasoning_content", "")
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.choices[0].finish_reason in ("stop", "length")


def test_second_turn_finds_its_prefix_in_the_cache(client, model):
    messages = [{"role": "user", "content": "Read this.\n" + "x = 1\n" * 200}]
    first = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    messages += [{"role": "assistant", "content": first.choices[0].message.content or "."}, *USER]
    second = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= 128


def test_a_recorded_session_is_replayed_turn_by_turn(client, server, model):
    def post(path: str, **body: Any) -> dict[str, Any]:
        return httpx.post(server.url + path, json=body, trust_env=False).raise_for_status().json()

    eos = post("/tokenize", prompt="<|im_end|>")["tokens"]
    history = post("/tokenize", prompt="x = 1\n" * 100)["tokens"]
    for turn in range(3):
        recorded = [*post("/tokenize", prompt=f"turn {turn}")["tokens"], *eos, 7, 0, *eos] * 8
        fields = {"prompt": history, "forced_token_ids": recorded, "logprobs": 0, "return_token_ids": True}
        answer = post("/v1/completions", model=model, **fields)
        (choice,) = answer["choices"]
        assert (choice["token_ids"], choice["finish_reason"]) == (recorded, "length")
        assert len(choice["logprobs"]["token_logprobs"]) == len(recorded)
        assert answer["usage"]["completion_tokens"] == len(recorded)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= (len(history) // 64 - 1) * 64 if turn else cached == 0
        page = httpx.get(f"{server.url}/debug/requests/{answer['id']}", trust_env=False).json()
        (told,) = page["requests"]
        assert (told["output_tokens"], told["cached_tokens"]) == (len(recorded), cached)
        times = told["token_us"]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert sum(gaps) == told["us"]["end"] - told["us"]["first_token"]
        history = [*history, *recorded]


@pytest.mark.parametrize("recorded", [[8192], [5] * 4096], ids=["no-such-id", "too-long"])
def test_a_recording_that_cannot_be_said_is_refused_by_name(server, recorded):
    body = {"prompt": [5], "forced_token_ids": recorded}
    answer = httpx.post(server.url + "/v1/completions", json=body, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "forced_token_ids")
    assert "forced_token_ids" in answer.json()["error"]["message"]


def test_text_and_ids_complete_alike(client, model, server):
    ids = httpx.post(server.url + "/tokenize", json={"prompt": "def add(a, b):"}, trust_env=False).json()[
        "tokens"
    ]
    answers = [
        client.completions.create(
            model=model, prompt=prompt, max_tokens=16, temperature=0, extra_body={"return_token_ids": True}
        )
        for prompt in ("def add(a, b):", ids)
    ]
    assert answers[0].choices[0].text == answers[1].choices[0].text
    assert answers[0].choices[0].token_ids == answers[1].choices[0].token_ids  # type: ignore[attr-defined]


def test_seed_makes_sampling_repeatable(client, model):
    fields = {"model": model, "prompt": "import", "max_tokens": 12, "temperature": 1.0, "n": 2, "seed": 11}
    first, second = (client.completions.create(**fields) for _ in range(2))
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert len({c.text for c in first.choices}) == 2


def test_stop_strings_and_logprobs(client, model):
    whole = client.completions.create(
        model=model, prompt="def f(x):", max_tokens=24, temperature=0, logprobs=2
    )
    choice = whole.choices[0]
    assert "".join(choice.logprobs.tokens[: len(choice.text)]).startswith(choice.text[:1])
    assert all(value <= 0 for value in choice.logprobs.token_logprobs)
    stop = choice.text[len(choice.text) // 2 :][:2]
    cut = client.completions.create(
        model=model, prompt="def f(x):", max_tokens=24, temperature=0, stop=[stop]
    )
    assert cut.choices[0].text == choice.text.split(stop)[0]
    assert cut.choices[0].finish_reason == "stop"


def test_tools_are_accepted(client, model):
    answer = client.chat.completions.create(model=model, messages=USER, tools=[TOOL], max_tokens=32)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_errors_of_the_sdk_have_words(client, model):
    with pytest.raises(NotFoundError, match=model):
        client.chat.completions.create(model="gpt-9", messages=USER)
    with pytest.raises(BadRequestError, match="maximum context length is 4096") as raised:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 9000}])
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError, match="ids are 0"):
        client.completions.create(model=model, prompt=[10**6], max_tokens=1)
    with pytest.raises(BadRequestError, match="empty"):
        client.completions.create(model=model, prompt="", max_tokens=1)


def test_max_tokens_is_clamped_to_what_fits(client, model):
    answer = client.completions.create(
        model=model,
        prompt=[5] * 4090,
        max_tokens=10**6,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    assert answer.usage.completion_tokens == 6
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_engine(server, stream):
    body = {"messages": USER, "stream": stream, "ignore_eos": True}
    if stream:
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, trust_env=False) as reply:
            next(reply.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/chat/completions", json=body, timeout=0.3, trust_env=False)
    until(lambda: server.gauge("tokenspeed_requests_open") == 0)
    until(lambda: server.gauge("tokenspeed_running") == 0)
    total = server.gauge("tokenspeed_blocks_total")
    until(lambda: server.gauge("tokenspeed_blocks_free") + server.gauge("tokenspeed_blocks_cached") == total)


def test_health_ready_metrics(server):
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert httpx.get(server.url + path, trust_env=False).status_code == 200
    assert server.gauge("tokenspeed_time_to_first_token_seconds_count") > 0
    assert 'tokenspeed_requests_aborted_total{reason="client"}' in httpx.get(server.url + "/metrics").text


def test_curl_of_the_banner_works(server):
    text = "".join(server.log)
    body = re.search(r"-d '(.*)'", text)[1]  # type: ignore[index]
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(
        server.url + "/v1/chat/completions", content=body, headers=headers, trust_env=False, timeout=60
    )
    assert answer.status_code == 200, answer.text


def test_death_of_the_core_ends_streams_and_health(capfd):
    with running() as doomed:
        pid = children(doomed.process.pid)[0]
        body = {"messages": USER, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", doomed.url + "/v1/chat/completions", json=body, trust_env=False) as reply:
            lines = (line for line in reply.iter_lines() if line)
            next(lines)
            subprocess.run(["kill", "-9", str(pid)], check=True)
            *_, event, done = list(lines)
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert done == "data: [DONE]"
        assert httpx.get(doomed.url + "/health", trust_env=False).status_code == 503
        refused = httpx.post(doomed.url + "/v1/completions", json={"prompt": "x"}, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")


def test_sigterm_lets_an_answer_finish_and_leaves_no_process():
    with running() as stopping:
        core = children(stopping.process.pid)[0]
        body = {"prompt": "x", "max_tokens": 100, "stream": True, "ignore_eos": True}
        with httpx.stream(
            "POST", stopping.url + "/v1/completions", json=body, trust_env=False, timeout=60
        ) as reply:
            lines = (line for line in reply.iter_lines() if line)
            next(lines)
            stopping.process.send_signal(signal.SIGTERM)
            *_, last, done = list(lines)
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert done == "data: [DONE]"
        assert stopping.process.wait(60) == 0
        assert subprocess.run(["kill", "-0", str(core)], capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(not SESSIONS.is_file(), reason="the real sessions are not beside the repository")
def test_ten_calls_of_a_real_session_hit_the_cache_and_answer_the_same_without_it(server, model):
    session = shortest_session(calls=10)
    prompts = [session["messages"][: turn["i"]] for turn in session["turns"][:10]]
    fields = {"model": model, "max_tokens": 6, "temperature": 0, "return_token_ids": True}

    def answers(url: str) -> list[dict[str, Any]]:
        with httpx.Client(base_url=url, trust_env=False, timeout=120) as http:
            sent = [http.post("/v1/chat/completions", json=fields | {"messages": m}) for m in prompts]
        assert [answer.status_code for answer in sent] == [200] * len(prompts)
        return [answer.json() for answer in sent]

    cached = answers(server.url)
    with running("--no-prefix-cache") as cold_server:
        cold = answers(cold_server.url)
    hits = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in cached]
    assert hits == sorted(hits)
    assert hits[-1] > 0.8 * cached[-1]["usage"]["prompt_tokens"]
    assert all(answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0 for answer in cold)
    assert [a["choices"][0]["token_ids"] for a in cached] == [a["choices"][0]["token_ids"] for a in cold]


def shortest_session(calls: int) -> dict[str, Any]:
    """The recorded session whose first `calls` calls are the shortest."""
    with gzip.open(SESSIONS, "rt") as lines:
        sessions = (json.loads(line) for line in lines)
        long_enough = (session for session in sessions if len(session["turns"]) >= calls)
        return min(long_enough, key=lambda session: session["turns"][calls - 1]["prompt_tokens"])


def children(pid: int) -> list[int]:
    """The processes started by `pid`."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in listed.stdout.split()]
