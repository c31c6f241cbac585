# SPDX-License-Identifier: MIT
"""What the core says of itself: gauges now, counters since start; made by the loop, carried by the wire."""

from __future__ import annotations

import msgspec


class CoreSample(msgspec.Struct, frozen=True, array_like=True):
    """One reading."""

    step: int
    """Steps launched so far."""
    waiting: int
    """Accepted requests that no step has run yet, or that were sent back."""
    running: int
    """Requests that hold a slot."""
    blocks_total: int
    blocks_free: int
    """Blocks that hold nothing."""
    blocks_cached: int
    """Blocks that hold a prefix nobody uses now; given up when blocks run out."""
    prompt_tokens: int
    """Of all requests that started."""
    prompt_tokens_cached: int
    """Of those, found in the prefix tree."""
    output_tokens: int
    retractions: int
    """Requests sent back to wait because blocks ran out."""
    faults: int
    """Rows that came out as NaN or infinity."""
    step_us_sum: int
    step_us_counts: list[int]
    """Steps by duration, one count per bucket of `timeline.STEP_BUCKETS_US` and one beyond."""
    phase_us_sums: list[int]
    """The loop's time, one sum per phase of `timeline.PHASES`."""
    blocks_leased: int
    """Blocks that one request holds alone, to write."""
    blocks_in_flight: int
    """Blocks given up while a launched step still names them."""
    cpu_us: int
    """CPU time of the core process, all threads."""
