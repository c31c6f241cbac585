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
    at_door: int = 0
    """Requests whose session is not admitted."""
    sessions_admitted: int = 0
    deadlines_passed: int = 0
    """Requests that had not begun by their deadline."""
    step_error_p99: float = 0.0
    """What all but one step in a hundred stay below, of |taken / predicted - 1|."""


class SessionAccount(msgspec.Struct, frozen=True, kw_only=True):
    """What a session is and has used."""

    admitted: bool
    requests: int
    requests_live: int
    prefill_ns: int
    """Device time of its chunks of prompts: its share of each step they were in."""
    decode_ns: int
    queue_us: int
    tokens_prompt: int
    tokens_cached: int
    tokens_computed: int
    tokens_output: int
    block_us: tuple[int, int, int]
    """KV blocks held, times how long: on the device, on the host, on disk."""
    block_tokens: int
