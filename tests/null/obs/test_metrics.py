# SPDX-License-Identifier: MIT
"""The exported text: front series are always there, core series follow the latest sample; all are documented.

`python tests/null/obs/test_metrics.py` writes the reference.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tokenspeed.obs.metrics import Metrics
from tokenspeed.obs.sample import CoreSample
from tokenspeed.obs.timeline import STEP_BUCKETS_US

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"
COUNTS = [0] * (len(STEP_BUCKETS_US) + 1)


def _sample() -> CoreSample:
    counts = COUNTS.copy()
    counts[1], counts[-1] = 3, 1
    return CoreSample(
        9, 1, 2, 64, 30, 20, 1000, 900, 50, 0, 0, 9_000_000, counts, [2_000_000, 0, 0, 1], 6, 4, 7_000_000
    )


def test_core_series_appear_once_there_is_a_sample() -> None:
    silent, speaking = Metrics(lambda: None), Metrics(_sample)
    names = {family.name for family in text_string_to_metric_families(silent.render().decode())}
    assert "tokenspeed_time_to_first_token_seconds" in names
    assert "tokenspeed_running" not in names
    families = {f.name: f for f in text_string_to_metric_families(speaking.render().decode())}
    assert families["tokenspeed_running"].samples[0].value == 2
    assert families["tokenspeed_prompt_tokens_cached"].samples[0].value == 900


def test_step_buckets_are_cumulative_and_in_seconds() -> None:
    families = {f.name: f for f in text_string_to_metric_families(Metrics(_sample).render().decode())}
    samples = {s.labels.get("le", s.name): s.value for s in families["tokenspeed_step_seconds"].samples}
    assert samples["0.0005"] == 0
    assert samples["0.001"] == 3
    assert samples["+Inf"] == 4
    assert samples["tokenspeed_step_seconds_sum"] == 9.0
    phases = {s.labels["phase"]: s.value for s in families["tokenspeed_loop_seconds"].samples}
    assert phases == {"plan": 2.0, "launch": 0.0, "wait": 0.0, "commit": 1e-6}


def test_two_engines_share_nothing() -> None:
    one, other = Metrics(lambda: None), Metrics(lambda: None)
    one.finished.labels("stop").inc()
    assert b'tokenspeed_requests_finished_total{reason="stop"} 1.0' in one.render()
    assert b'reason="stop"' not in other.render()


def _reference() -> str:
    lines = [
        "# Metrics",
        "",
        "What `/metrics` exports, as Prometheus text. Names end in their unit; a name without one is a count.",
        "This page is written from the code by `python tests/null/obs/test_metrics.py`.",
        "",
        "| series | kind | labels | what |",
        "|---|---|---|---|",
    ]
    families = sorted(Metrics(_sample).registry.collect(), key=lambda family: family.name)
    return "\n".join([*lines, *map(_row, families)]) + "\n"


def _row(family: Metric) -> str:
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    if not family.samples:
        labels = ["reason"]  # a counter that has not counted has no samples yet; all of ours have this label
    return f"| {name} | {family.type} | {', '.join(labels)} | {family.documentation} |"


def test_reference_lists_every_series() -> None:
    assert REFERENCE.read_text() == _reference(), f"run: python {Path(__file__).name}"


def test_every_counter_that_may_be_silent_has_the_label_the_reference_says() -> None:
    metrics = Metrics(_sample)
    for counter in (metrics.finished, metrics.aborted, metrics.refused):
        counter.labels("reason").inc()
    assert all(family.samples for family in metrics.registry.collect())


if __name__ == "__main__":
    REFERENCE.write_text(_reference())
