# SPDX-License-Identifier: MIT
"""Spans are the timeline's moments on the wall's clock, in the caller's trace, and say nothing it does not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.errors import SetupError
from tokenspeed.obs.requests import RecentRequests, RequestTimeline
from tokenspeed.obs.spans import RequestSpans, provider_to

WALL_NS = 1_700_000_000_000_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Recorder:
    """Requests whose spans are kept. Times of spans are given back in microseconds of the fake clock."""

    def __init__(self) -> None:
        self.clock = FakeClock(0)
        self.requests = RecentRequests()
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        wall_ns = lambda: WALL_NS + self.clock.now_us() * 1000  # noqa: E731
        self.requests.on_end = RequestSpans(provider, self.clock, "a-model", wall_ns=wall_ns)

    def open(self, request_id: int = 1, **fields: str | None) -> RequestTimeline:
        now_us = self.clock.now_us()
        return self.requests.open(
            request_id,
            prompt_tokens=100,
            received_us=now_us,
            queued_us=now_us + 10,
            answer_id="cmpl-x",
            session=fields.get("session"),
            traceparent=fields.get("traceparent"),
        )

    def answer(self, request_id: int = 1, **fields: str | None) -> RequestTimeline:
        """One whole answer: first step after 30 us, tokens after 100, 150 and 200."""
        one, begin_us = self.open(request_id, **fields), self.clock.now_us()
        one.note_first_step(begin_us + 30, 64)
        self.clock.advance_us(50)
        for _ in range(3):
            self.clock.advance_us(50)
            one.note_tokens(1, self.clock.now_us())
        self.requests.end(one, "length", self.clock.now_us())
        return one

    def spans(self) -> Sequence[ReadableSpan]:
        return self._kept.get_finished_spans()

    def times(self) -> dict[str, tuple[int, int]]:
        return {span.name: (_us(span.start_time), _us(span.end_time)) for span in self.spans()}


def _us(time_ns: int | None) -> int:
    assert time_ns is not None
    return (time_ns - WALL_NS) // 1000


def test_phases_cover_a_request_without_a_gap():
    recorder = Recorder()
    recorder.clock.advance_us(1000)
    recorder.answer()
    assert recorder.times() == {
        "queue": (1010, 1030),
        "prefill": (1030, 1100),
        "decode": (1100, 1200),
        "request": (1000, 1200),
    }
    *children, request = recorder.spans()
    assert all(child.parent == request.context for child in children)
    assert request.attributes == {
        "gen_ai.request.model": "a-model",
        "gen_ai.response.id": "cmpl-x",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 3,
        "tokenspeed.request_id": 1,
        "tokenspeed.cached_tokens": 64,
        "tokenspeed.retractions": 0,
    }


def test_request_of_a_trace_belongs_to_it():
    recorder = Recorder()
    recorder.answer(traceparent=f"00-{TRACE}-{CALLER}-01")
    assert {f"{span.context.trace_id:032x}" for span in recorder.spans() if span.context} == {TRACE}
    request = recorder.spans()[-1]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CALLER


def test_request_of_a_trace_that_is_not_sampled_makes_no_span():
    recorder = Recorder()
    recorder.answer(traceparent=f"00-{TRACE}-{CALLER}-00")
    assert recorder.spans() == ()


@pytest.mark.parametrize("nonsense", ["", "00-0-0-01", "x" * 256, f"00-{'0' * 32}-{CALLER}-01"])
def test_traceparent_that_is_none_begins_a_trace(nonsense: str):
    recorder = Recorder()
    recorder.answer(traceparent=nonsense)
    assert recorder.spans()[-1].parent is None


def test_pause_is_the_time_a_session_spent_elsewhere():
    recorder = Recorder()
    recorder.answer(1, session="s")
    assert "pause" not in recorder.times()
    recorder.clock.advance_us(5000)
    recorder.answer(2, session="other")
    recorder.answer(3, session="s", traceparent=f"00-{TRACE}-{CALLER}-01")
    pauses = [span for span in recorder.spans() if span.name == "pause"]
    assert [(_us(pause.start_time), _us(pause.end_time)) for pause in pauses] == [(200, 5400)]
    # Beside the request: the caller asked for both.
    assert pauses[0].parent == recorder.spans()[-1].parent


def test_overlapping_requests_of_a_session_have_no_pause():
    recorder = Recorder()
    early = recorder.open(1, session="s")
    recorder.answer(2, session="s")
    recorder.requests.end(early, "stop", recorder.clock.now_us())
    assert "pause" not in recorder.times()


def test_request_that_never_ran_is_all_queue_and_a_failure_is_an_error():
    recorder = Recorder()
    one = recorder.open()
    recorder.clock.advance_us(70)
    recorder.requests.end(one, "engine_dead", recorder.clock.now_us())
    assert recorder.times() == {"queue": (10, 70), "request": (0, 70)}
    assert recorder.spans()[-1].status.status_code is StatusCode.ERROR


def test_sessions_are_the_hashes_of_the_timelines():
    recorder = Recorder()
    one = recorder.answer(session="a name")
    attributes = recorder.spans()[-1].attributes
    assert attributes is not None
    assert attributes["session.id"] == one.session != "a name"


def test_collector_is_reached_over_http():
    paths: list[tuple[str, int]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            paths.append((self.path, len(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        provider = provider_to(f"http://127.0.0.1:{server.server_port}")
        requests = RecentRequests()
        requests.on_end = RequestSpans(provider, FakeClock(0), "m")
        requests.end(requests.open(1, prompt_tokens=1, received_us=0, queued_us=0), "stop", 9)
        provider.shutdown()  # sends what waits
        thread.join()
    assert [path for path, _ in paths] == ["/v1/traces"]
    assert paths[0][1] > 100


def test_endpoint_that_is_no_url_is_refused():
    with pytest.raises(SetupError, match="--otel-endpoint 'here': expected http"):
        provider_to("here")


def test_without_the_extra_its_name_is_in_the_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "tokenspeed.obs.spans")
    monkeypatch.delattr("tokenspeed.obs.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SetupError, match=r"pip install 'tokenspeed\[otel\]'"):
        __import__("tokenspeed.obs.spans")
