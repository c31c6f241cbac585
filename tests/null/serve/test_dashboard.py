# SPDX-License-Identifier: MIT
"""The dashboard and the timelines of requests: true figures, no text, the key's rules, a page that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import scripted

from tokenspeed.base.clock import FakeClock
from tokenspeed.engine import wire
from tokenspeed.obs.sample import CoreSample
from tokenspeed.obs.timeline import STEP_BUCKETS_US
from tokenspeed.serve import dashboard

S = 1_000_000
START_US = 50 * S
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
POOL = {"leased": 5, "shared": 22, "in_flight": 3, "cached": 20, "free": 14}


def _sample(steps: int) -> CoreSample:
    counts = [0] * (len(STEP_BUCKETS_US) + 1)
    counts[2] = steps
    return CoreSample(
        step=steps, waiting=3, running=2, blocks_total=64, blocks_free=POOL["free"],
        blocks_cached=POOL["cached"], prompt_tokens=1000, prompt_tokens_cached=800, output_tokens=50,
        retractions=1, faults=0, step_us_sum=steps * 1_500, step_us_counts=counts,
        phase_us_sums=[steps * 100, steps * 1000, steps * 300, steps * 100],
        blocks_leased=POOL["leased"], blocks_in_flight=POOL["in_flight"], cpu_us=0,
    )  # fmt: skip


def _live(engine: scripted.ScriptedEngine, clock: FakeClock) -> None:
    """Two sessions: one request that ended at 20 tokens/s, one that decodes at 10, one that waits."""
    engine.clock = clock  # type: ignore[assignment]
    requests, history = engine.requests, engine.history
    for request_id, (session, gap_us) in enumerate((("alice", S // 20), ("bob", S // 10)), 1):
        received_us = clock.now_us()
        one = requests.open(
            request_id,
            prompt_tokens=100,
            received_us=received_us,
            queued_us=received_us + 10,
            answer_id=f"cmpl-{session}",
            session=session,
        )
        one.note_first_step(received_us + 20, 64)
        history.note_start(clock.now_us(), prompt_tokens=100, cached_tokens=64)
        for place in range(11):
            clock.advance_us(gap_us)
            since_us = one.note_tokens(1, clock.now_us())
            history.note_tokens(clock.now_us(), 1, since_us, first=not place)
        history.note_core(clock.now_us(), _sample(10 * request_id))
    requests.end(requests.find("1")[0], "length", clock.now_us())
    requests.open(3, prompt_tokens=9, received_us=clock.now_us(), queued_us=clock.now_us(), session="bob")
    engine.stats = wire.Stats(clock.now_us(), _sample(20))
    clock.advance_us(S)


@pytest.fixture(scope="module")
def live() -> Iterator[scripted.Serving]:
    with scripted.serving() as server:
        _live(server.engine, FakeClock(START_US))
        yield server


def _get(server: scripted.Serving, path: str, **headers: str) -> httpx.Response:
    return httpx.get(server.url + path, headers=headers, trust_env=False)


def test_figures_are_those_of_the_engine(live: scripted.Serving) -> None:
    document = _get(live, "/dashboard/data").json()
    now = document["now"]
    assert now["tokens_per_s_answers"] == [10.0, 20.0]
    # 20 gaps between tokens in 0.5 s and 1 s: the pooled rate, not the mean of 20 and 10.
    assert now["tokens_per_s_user"] == pytest.approx(20 / 1.5)
    assert now["tokens_per_s_user_p10"] == 10.0
    assert (now["tokens_per_minute"], now["prompt_tokens_per_minute"]) == (22, 200)
    assert (now["hit_rate"], now["hit_rate_total"]) == (0.64, 0.8)
    assert (now["running"], now["waiting"], now["requests_open"]) == (2, 3, 2)
    assert now["first_token_ms"] == 75.0
    assert document["blocks"] == {"total": 64} | POOL
    assert sum(POOL.values()) == 64


def test_columns_hold_one_value_a_second_and_the_split_of_a_step(live: scripted.Serving) -> None:
    columns: dict[str, list[Any]] = _get(live, "/dashboard/data").json()["seconds"]
    assert {len(column) for column in columns.values()} == {dashboard.WINDOW_S}
    assert sum(filter(None, columns["tokens"])) == 22
    last = {name: [value for value in column if value is not None] for name, column in columns.items()}
    assert last["tokens_per_s_user"][-1] == pytest.approx(20 / 1.5)  # both sessions lie within five seconds
    steps = [last[f"step_ms_{phase}"] for phase in ("plan", "launch", "wait", "commit")]
    assert steps == [[0.1], [1.0], [0.3], [0.1]]
    assert last["blocks_shared"][-1] == POOL["shared"]


def test_sessions_are_hashes_with_their_hit_rate(live: scripted.Serving) -> None:
    answer = _get(live, "/dashboard/data")
    bob, alice = answer.json()["sessions"]
    assert (bob["requests"], bob["open"], alice["requests"], alice["open"]) == (2, 2, 1, 0)
    assert bob["hit_rate"] == alice["hit_rate"] == 0.64
    assert re.fullmatch(r"[0-9a-f]{12}", bob["session"])
    assert "bob" not in answer.text.replace("cmpl-bob", "")


def test_errors_are_codes_without_words(live: scripted.Serving) -> None:
    for body in ({"prompt": "x", "n": 0}, {"prompt": "x", "model": "a secret name"}):
        httpx.post(live.url + "/v1/completions", json=body, trust_env=False)
    live.engine.script = scripted.Script(failure=ValueError("a secret"))
    body = {"prompt": "x", "stream": True}
    httpx.post(live.url + "/v1/completions", json=body, trust_env=False)
    answer = _get(live, "/dashboard/data")
    told = [(error["status"], error["code"], error["param"]) for error in answer.json()["errors"]]
    assert told == [
        (500, "generation_failed", None),
        (404, "model_not_found", "model"),
        (400, "invalid_value", "n"),
    ]
    assert "secret" not in answer.text


def test_before_anything_happened_there_is_a_document() -> None:
    with scripted.serving() as server:
        document = _get(server, "/dashboard/data").json()
    assert document["now"]["tokens_per_s_user"] is None
    assert document["blocks"] is None
    assert document["requests"] == document["sessions"] == document["errors"] == []


def test_a_timeline_tells_every_moment_and_its_sums_are_exact(live: scripted.Serving) -> None:
    document = _get(live, "/debug/requests/cmpl-alice").json()
    (one,) = document["requests"]
    assert (one["request_id"], one["state"], one["finish"], one["output_tokens"]) == (
        1,
        "ended",
        "length",
        11,
    )
    assert (one["us"]["queued"], one["us"]["first_step"], one["us"]["first_token"]) == (10, 20, S // 20)
    gaps = [later - earlier for earlier, later in pairwise(one["token_us"])]
    assert sum(gaps) == one["us"]["last_token"] - one["us"]["first_token"] == 10 * S // 20
    states = {item["request_id"]: item["state"] for item in _get(live, "/debug/requests").json()["requests"]}
    assert states == {1: "ended", 2: "decoding", 3: "queued"}
    assert _get(live, "/debug/requests/2").json()["requests"][0]["id"] == "cmpl-bob"


def test_a_forgotten_request_is_not_found(live: scripted.Serving) -> None:
    answer = _get(live, "/debug/requests/cmpl-nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_request"


def test_the_page_needs_no_key_and_its_data_does() -> None:
    with scripted.serving(api_key="sesame") as guarded:
        assert _get(guarded, "/dashboard").status_code == 200
        for path in ("/dashboard/data", "/debug/requests", "/debug/requests/1"):
            assert _get(guarded, path).status_code == 401
        assert _get(guarded, "/dashboard/data", Authorization="Bearer sesame").status_code == 200


def test_another_name_gets_neither_page_nor_data(live: scripted.Serving) -> None:
    for path in ("/dashboard", "/dashboard/data", "/debug/requests"):
        assert _get(live, path, Host="evil.example").status_code == 403


def test_the_page_refers_to_nothing_elsewhere_and_may_run_only_itself(live: scripted.Serving) -> None:
    answer = _get(live, "/dashboard")
    addresses = set(re.findall(r"https?://[\w./]+", answer.text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name space, not an address
    assert "innerHTML" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def _rendered(url: str, profile: Path) -> str:
    """The page's document after three seconds of its own time."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command = [
        CHROMIUM,
        *flags,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=3000",
        "--dump-dom",
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_figures(live: scripted.Serving, tmp_path: Path) -> None:
    document = _rendered(live.url + "/dashboard#2", tmp_path)
    text = re.sub(r"<script>.*?</script>|<[^>]+>", " ", document, flags=re.DOTALL)
    for shown in (
        r"demo · ",
        r"live",
        r"Tokens/s per user\s+13\.3",
        r"p10 10\.0, 2 of 2 below ",
        r"KV by tier .*leased\s+5\s.*cached\s+20\s.*device\s.*64 blocks of \d+ tokens",
        r"plan\s+100 µs\s+launch\s+1 ms\s+wait\s+300 µs\s+commit\s+100 µs",
        r"2 \(2 open\)",
        r"64\.0%",
        r"cmpl-bob",
        r"between tokens of request 2: median 100 ms, p99 100 ms",
    ):
        assert re.search(shown, text, re.DOTALL), (shown, text[text.find("KV by tier") :][:400])
    assert document.count('class="fill') > len(POOL)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_is_asked_for_the_key(tmp_path: Path) -> None:
    with scripted.serving(api_key="sesame") as guarded:
        document = _rendered(guarded.url + "/dashboard", tmp_path)
    assert "this server wants its key</span>" in document
    assert '<form id="key">' in document
