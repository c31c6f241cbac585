# SPDX-License-Identifier: MIT
"""Each request as OpenTelemetry spans, made from its timeline when it has ended.

In: timelines as they end, and the `traceparent` that a request came with. Out: spans to an OTLP collector, or to any
tracer provider: `request` with the children `queue`, `prefill` and `decode`, which cover it without a gap once it was
queued, and beside it `pause`, the time its session spent elsewhere (a tool, a person) since its last answer. A request
that came within a trace belongs to it and follows its sampling. Off unless asked for; spans hold what timelines hold:
no text, no tokens, sessions as hashes. A request costs its spans once, after its last token; nothing is sent from the
loop.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from tokenspeed.base.clock import Clock
from tokenspeed.base.errors import SetupError
from tokenspeed.obs.requests import RequestTimeline

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise SetupError(
        f"--otel-endpoint needs OpenTelemetry: pip install 'tokenspeed[otel]' ({error})"
    ) from error

EXPORT_S: Final = 5.0
"""How long a batch may take to reach the collector before it is dropped."""
SESSIONS_MAX: Final = 4096
"""Sessions whose last answer is remembered."""
_FAILED: Final = frozenset({"error", "engine_dead", "refused"})


def provider_to(endpoint: str) -> TracerProvider:
    """A provider that sends to an OTLP collector over HTTP, in batches from a thread of its own.

    `/v1/traces` is added to an endpoint without a path. `OTEL_*` variables are the SDK's own and hold.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SetupError(f"--otel-endpoint {endpoint!r}: expected http://HOST:PORT")
    url = endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    provider = TracerProvider(resource=Resource.create({"service.name": "tokenspeed"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=EXPORT_S)))
    return provider


class RequestSpans:
    """Turns timelines into spans; call it with each one that has ended."""

    def __init__(
        self,
        provider: TracerProvider,
        clock: Clock,
        model: str,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = provider.get_tracer("tokenspeed")
        self._clock = clock
        self._model = model
        self._wall_ns = wall_ns
        self._ended_us: OrderedDict[str, int] = OrderedDict()  # session -> end of its last answer

    def __call__(self, one: RequestTimeline) -> None:
        # Timelines are of a clock that never steps; spans are of the wall's. They are tied here, once a request.
        epoch_ns = self._wall_ns() - self._clock.now_us() * 1000
        carrier = {} if one.traceparent is None else {"traceparent": one.traceparent}
        outer = TraceContextTextMapPropagator().extract(carrier)
        root = self._tracer.start_span(
            "request", outer, SpanKind.SERVER, start_time=epoch_ns + one.received_us * 1000
        )
        inner = set_span_in_context(root, outer)

        def add(name: str, context: Context, begin_us: int, end_us: int) -> None:
            span = self._tracer.start_span(name, context, start_time=epoch_ns + begin_us * 1000)
            span.end(epoch_ns + end_us * 1000)

        since_us = self._pause_began(one)
        if since_us is not None:
            # Beside the request where something outside asked for both, else below it: a trace has one root.
            add("pause", inner if one.traceparent is None else outer, since_us, one.received_us)
        for name, begin_us, end_us in _phases(one):
            add(name, inner, begin_us, end_us)
        self._describe(root, one)
        root.end(epoch_ns + one.end_us * 1000)

    def _pause_began(self, one: RequestTimeline) -> int | None:
        """When the last answer of this session ended, if that was before this request."""
        if one.session is None:
            return None
        before_us = self._ended_us.get(one.session)
        self._ended_us[one.session] = max(one.end_us, before_us or 0)
        self._ended_us.move_to_end(one.session)
        if len(self._ended_us) > SESSIONS_MAX:
            self._ended_us.popitem(last=False)
        return before_us if before_us is not None and before_us <= one.received_us else None

    def _describe(self, span: Span, one: RequestTimeline) -> None:
        """Names of the GenAI conventions where there are any."""
        finish = one.finish or ""
        span.set_attributes(
            {
                "gen_ai.request.model": self._model,
                "gen_ai.response.id": one.answer_id,
                "gen_ai.response.finish_reasons": [finish],
                "gen_ai.usage.input_tokens": one.prompt_tokens,
                "gen_ai.usage.output_tokens": one.output_tokens,
                "tokenspeed.request_id": one.request_id,
                "tokenspeed.cached_tokens": one.cached_tokens,
                "tokenspeed.retractions": one.retractions,
            }
        )
        if one.session is not None:
            span.set_attribute("session.id", one.session)
        if finish in _FAILED:
            span.set_status(StatusCode.ERROR, finish)


def _phases(one: RequestTimeline) -> list[tuple[str, int, int]]:
    """(name, begin, end) of what a request went through; the last ends when the request does."""
    begins = [("queue", one.queued_us), ("prefill", one.first_step_us), ("decode", one.first_token_us)]
    reached = [(name, begin_us) for name, begin_us in begins if begin_us >= 0]
    ends = [begin_us for _, begin_us in reached[1:]] + [one.end_us]
    return [(name, begin_us, end_us) for (name, begin_us), end_us in zip(reached, ends, strict=True)]
