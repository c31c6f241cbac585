# SPDX-License-Identifier: MIT
"""Every series `/metrics` exports, with its unit: this file is the list.

In: events of the front (a request starts, yields, ends) and the core's latest sample. Out: Prometheus text.
Each `Metrics` has its own registry, so two engines in one process do not meet. Labels are closed sets;
nothing a user sends becomes a label.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenspeed.obs.sample import CoreSample
from tokenspeed.obs.timeline import PHASES, STEP_BUCKETS_US

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_INTER_TOKEN_S: Final = (0.002, 0.005, 0.01, 0.0143, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_REQUEST_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_TOKENS: Final = (1, 16, 64, 256, 1024, 4096, 16384, 65536, 131072, 262144)


class Metrics:
    """The series of one engine. `sample` is asked for the core's latest at each scrape, None at first."""

    def __init__(self, sample: Callable[[], CoreSample | None]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.first_token_s = self._histogram(
            "tokenspeed_time_to_first_token_seconds",
            _FIRST_TOKEN_S,
            "from a request's arrival to its first token",
        )
        self.inter_token_s = self._histogram(
            "tokenspeed_inter_token_seconds",
            _INTER_TOKEN_S,
            "between tokens of a request; their mean, once for each, where several came at once",
        )
        self.queue_s = self._histogram(
            "tokenspeed_queue_seconds",
            _FIRST_TOKEN_S,
            "from the time a tokenised request was handed to the core to the first step that ran it",
        )
        self.request_s = self._histogram(
            "tokenspeed_request_seconds", _REQUEST_S, "from a request's arrival to its end"
        )
        self.prompt_tokens = self._histogram(
            "tokenspeed_request_prompt_tokens", _TOKENS, "length of prompts, tokens"
        )
        self.output_tokens = self._histogram(
            "tokenspeed_request_output_tokens", _TOKENS, "length of answers, tokens"
        )
        self.finished = self._counter("tokenspeed_requests_finished", "ended requests by how they ended")
        self.aborted = self._counter("tokenspeed_requests_aborted", "requests the front gave up, by cause")
        self.refused = self._counter(
            "tokenspeed_requests_refused", "requests refused before any work, by cause"
        )
        self.chat_prompts = self._closed(
            "tokenspeed_chat_prompts",
            {"effort": ("whole", "compared", "appended")},
            "prompts of messages, by what was done: everything rendered and encoded; everything rendered, what "
            "differs encoded; only what is new rendered and encoded",
        )
        self.chat_tokens = self._closed(
            "tokenspeed_chat_prompt_tokens",
            {"source": ("encoded", "reused")},
            "tokens of such prompts: encoded in their turn, or reused from the turn ledger",
        )
        self.ledger_checks = self._closed(
            "tokenspeed_ledger_checks",
            {"result": ("equal", "different")},
            "prompts made with the turn ledger that were made again in full; different is a defect",
        )
        self.ledger_bytes = Gauge(
            "tokenspeed_ledger_bytes", "memory of the turn ledger", registry=self.registry
        )
        self.open = Gauge(
            "tokenspeed_requests_open", "requests between arrival and end", registry=self.registry
        )
        self.registry.register(_CoreCollector(sample))

    def render(self) -> bytes:
        """The Prometheus text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, buckets: Sequence[float], help: str) -> Histogram:
        return Histogram(name, help, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, ["reason"], registry=self.registry)

    def _closed(self, name: str, label: dict[str, tuple[str, ...]], help: str) -> Counter:
        """A counter of which every series is there from the start."""
        ((key, values),) = label.items()
        counter = Counter(name, help, [key], registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter


class _CoreCollector(Collector):
    """The core's counters and gauges, read when scraped."""

    def __init__(self, sample: Callable[[], CoreSample | None]) -> None:
        self._sample = sample

    def collect(self) -> Iterable[Metric]:
        core = self._sample()
        cpu = CounterMetricFamily(
            "tokenspeed_cpu_seconds", "CPU time of a process, all its threads", labels=["process"]
        )
        cpu.add_metric(["api"], time.process_time())
        if core is not None:
            cpu.add_metric(["core"], core.cpu_us / 1e6)
        yield cpu
        if core is None:
            return
        gauges = (
            ("waiting", core.waiting, "accepted requests that no step has run yet, or that were sent back"),
            ("running", core.running, "requests that hold a slot"),
            ("blocks_total", core.blocks_total, "KV blocks of the arena"),
            ("blocks_free", core.blocks_free, "KV blocks that hold nothing"),
            ("blocks_leased", core.blocks_leased, "KV blocks that one request holds alone, to write"),
            (
                "blocks_in_flight",
                core.blocks_in_flight,
                "KV blocks given up that a launched step still names",
            ),
            ("blocks_cached", core.blocks_cached, "KV blocks that hold a prefix nobody uses now"),
        )
        for name, value, help in gauges:
            yield GaugeMetricFamily(f"tokenspeed_{name}", help, value=value)
        counters = (
            ("prompt_tokens", core.prompt_tokens, "prompt tokens of requests that started"),
            ("prompt_tokens_cached", core.prompt_tokens_cached, "of those, tokens found in the prefix tree"),
            ("output_tokens", core.output_tokens, "tokens produced"),
            ("retractions", core.retractions, "requests sent back to wait because blocks ran out"),
            ("faults", core.faults, "rows that came out as NaN or infinity"),
        )
        for name, value, help in counters:
            yield CounterMetricFamily(f"tokenspeed_{name}", help, value=value)
        phases = CounterMetricFamily(
            "tokenspeed_loop_seconds", "the loop's time by what it did with a step", labels=["phase"]
        )
        for phase, phase_us in zip(PHASES, core.phase_us_sums, strict=True):
            phases.add_metric([phase], phase_us / 1e6)
        yield phases
        yield HistogramMetricFamily(
            "tokenspeed_step_seconds",
            "steps of the model, by the time each alone had the device",
            buckets=_cumulative(core.step_us_counts),
            sum_value=core.step_us_sum / 1e6,
        )


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    bounds = [*(f"{bound_us / 1e6:g}" for bound_us in STEP_BUCKETS_US), "+Inf"]
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
