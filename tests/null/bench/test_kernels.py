# SPDX-License-Identifier: MIT
"""The kernel benchmark: rows are honest about what they measured, shares about what was reached."""

from __future__ import annotations

import pytest

from tokenspeed.bench.kernels import Ceiling, Row, main, measure, report
from tokenspeed.kernels import describe, registry, select


def row(kernel: str, median_us: float, cold: bool = True) -> Row:
    return Row(
        "norm.rms", kernel, {"width": "8"}, "T=1", "float32", cold, 1000, 4000, median_us, (median_us,)
    )


def test_every_op_can_be_timed_at_its_first_point() -> None:
    device = describe("cpu")
    for op in registry().ops():
        kernel = select(registry(), op.name, op.points[0].traits, device).kernel
        timed = measure(op, kernel, op.points[0], device, seconds=0.0, seed=0)
        assert timed.median_us > 0
        assert timed.bytes > 0
        assert len(timed.times_us) == 1


def test_ceiling_rises_to_what_kernels_reached_from_memory() -> None:
    probed = Ceiling(1e9, {"float32": 1e9})
    assert probed.raised([]) == probed
    assert probed.raised([row("cpu", 0.5)]) == Ceiling(2e9, {"float32": 8e9})
    assert probed.raised([row("cpu", 0.5, cold=False)]).bytes_per_s == 1e9


def test_share_is_floor_over_time_and_speed_is_against_ref() -> None:
    ceiling = Ceiling(1e9, {"float32": 1e9})
    assert ceiling.floor_us(row("cpu", 8.0)) == pytest.approx(4.0)
    header, fast, slow = report([row("cpu", 8.0), row("ref", 80.0)], ceiling).splitlines()
    assert header.split() == ["op", "kernel", "traits", "sizes", "us", "GB/s", "GFLOP/s", "share", "x", "ref"]
    assert fast.split() == ["norm.rms", "cpu", "width=8", "T=1", "8.0", "0.1", "0.5", "50%", "10.0"]
    assert slow.split() == ["norm.rms", "ref", "width=8", "T=1", "80.0", "0.0", "0.1", "5%", "1.0"]


def test_pattern_that_matches_no_op_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["norm.layer"]) == 2
    assert "no op matches 'norm.layer'; ops are: " in capsys.readouterr().err
