# SPDX-License-Identifier: MIT
"""What a simulated run is worth: floors kept, turns an hour, waits, reuse, fairness.

In: a `Record`. Out: `Measures`, plain numbers; docs/concepts/agents-simulated.md defines each. Only what was
submitted, said or computed after the warm-up counts. Judges alone: knows neither policy nor why.

A window of a request opens at its first token, or where the window before closed. It closes with 64 further
tokens or after 2 s, and violates a floor where it has fewer tokens than floor * length. The last one, cut off by
the end of the answer, violates it if a whole window would have been over: no shorter span is promised anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.sim.agents import Record, Setting, Turn
from tokenspeed.sim.device import DeviceModel

WINDOW_TOKENS: Final = 64
WINDOW_US: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Measures:
    """One run's figures. Waits are in seconds, shares in parts of one."""

    turns_per_hour: float
    windows: int
    windows_violating: int
    requests_violating: int
    requests: int
    tps_mean: float  # of turns: (tokens - 1) / time from first to last
    tps_p10: float
    ttft_p50_s: float  # of turns after a session's first: no door in between
    ttft_p95_s: float
    door_p50_s: float  # of first turns: until they run
    door_p95_s: float
    wait_max_s: float  # submitted and not yet running, whoever
    hit_share: float  # of prompt tokens
    hit_bound_share: float  # had nothing ever been evicted
    recompute_share: float  # of prompt tokens: computed although they had been before
    recompute_work_share: float  # of computed prompt tokens: the same
    jain: float  # over lanes: how near to alone each was served
    retractions: int
    refusals: int
    busy_share: float
    sessions_ended: int
    turns_per_hour_of_lane: dict[int, float]  # by tenant: of one of its sessions
    copies: int  # of blocks, between tiers


def violations(times_us: NDArray[np.int64], floor_tps: float) -> tuple[int, int]:
    """Windows of one request and how many violate the floor; `times_us` are its tokens' moments in order."""
    windows = violating = 0
    at, last = 0, len(times_us) - 1
    open_us = int(times_us[0])
    while at < last:
        inside = int(np.searchsorted(times_us, open_us + WINDOW_US, side="right")) - 1
        whole = min(at + WINDOW_TOKENS, inside)
        if whole == last and last < at + WINDOW_TOKENS:  # the answer ends inside
            span_us, count = int(times_us[last]) - open_us, WINDOW_TOKENS
            at = last
        elif whole == at + WINDOW_TOKENS:
            span_us, count = int(times_us[whole]) - open_us, WINDOW_TOKENS
            at, open_us = whole, int(times_us[whole])
        else:
            span_us, count = WINDOW_US, whole - at
            at, open_us = whole, open_us + WINDOW_US
        windows += 1
        violating += count * 1_000_000 < floor_tps * span_us
    return windows, violating


def measure(record: Record, device: DeviceModel, hit_bound_tokens: int, floor_tps: float) -> Measures:
    """Judge a run against a floor; `hit_bound_tokens` is what an endless cache would have found."""
    setting = record.setting
    late = [turn for turn in record.turns if turn.submit_us >= setting.warm_up_us]
    started = [turn for turn in late if turn.bound_us is not None]
    ended = [turn for turn in record.turns if turn.end_us is not None and turn.end_us >= setting.warm_up_us]
    hours = (record.end_us - setting.warm_up_us) / 3.6e9
    moments = _moments(record)
    judged = [violations(moments[turn.request_id], floor_tps) for turn in late if turn.request_id in moments]
    speeds = [
        (turn.output_tokens - 1) / (turn.end_us - turn.first_token_us) * 1e6
        for turn in late
        if turn.end_us is not None and turn.first_token_us is not None and turn.end_us > turn.first_token_us
    ]
    ttfts = [_wait_s(turn.submit_us, turn.first_token_us, record.end_us) for turn in late if not turn.first]
    doors = [_wait_s(turn.submit_us, turn.bound_us, record.end_us) for turn in late if turn.first]
    prompt = sum(turn.input_tokens for turn in started)
    hit = sum(turn.cached_tokens for turn in started)
    again = max(0, hit_bound_tokens - hit)
    return Measures(
        turns_per_hour=len(ended) / hours,
        windows=sum(windows for windows, _ in judged),
        windows_violating=sum(violating for _, violating in judged),
        requests_violating=sum(violating > 0 for _, violating in judged),
        requests=len(judged),
        tps_mean=float(np.mean(speeds)) if speeds else 0.0,
        tps_p10=_quantile(speeds, 0.1),
        ttft_p50_s=_quantile(ttfts, 0.5),
        ttft_p95_s=_quantile(ttfts, 0.95),
        door_p50_s=_quantile(doors, 0.5),
        door_p95_s=_quantile(doors, 0.95),
        wait_max_s=max((_wait_s(t.submit_us, t.bound_us, record.end_us) for t in late), default=0.0),
        hit_share=hit / prompt if prompt else 0.0,
        hit_bound_share=hit_bound_tokens / prompt if prompt else 0.0,
        recompute_share=again / prompt if prompt else 0.0,
        recompute_work_share=again / (prompt - hit) if prompt > hit else 0.0,
        jain=jain(_service(ended, device, setting.lanes)),
        retractions=sum(turn.retractions for turn in late),
        refusals=record.refusals,
        busy_share=record.busy_us / (record.end_us - setting.warm_up_us),
        sessions_ended=record.sessions_ended,
        turns_per_hour_of_lane=_by_tenant(ended, setting, hours),
        copies=record.copies,
    )


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has everything."""
    total = sum(shares)
    return total * total / (len(shares) * sum(share * share for share in shares)) if total else 0.0


def _by_tenant(ended: Iterable[Turn], setting: Setting, hours: float) -> dict[int, float]:
    """Turns an hour of a lane of each tenant, on average."""
    tenants = setting.tenants or (0,) * setting.lanes
    lanes, turns = Counter(tenants), Counter(tenants[turn.lane] for turn in ended)
    return {tenant: turns[tenant] / lanes[tenant] / hours for tenant in sorted(lanes)}


def _service(ended: Iterable[Turn], device: DeviceModel, lanes: int) -> list[float]:
    """By lane: what its turns would have taken alone, over what they took (a lane without any: 0)."""
    alone_us, taken_us = [0] * lanes, [0] * lanes
    for turn in ended:
        assert turn.end_us is not None
        alone_us[turn.lane] += device.alone_us(turn.input_tokens, turn.new_tokens, turn.output_tokens)
        taken_us[turn.lane] += turn.end_us - turn.submit_us
    return [alone / taken if taken else 0.0 for alone, taken in zip(alone_us, taken_us, strict=True)]


def _moments(record: Record) -> dict[int, NDArray[np.int64]]:
    """By request: when its tokens came."""
    if len(record.token_ids) == 0:
        return {}
    order = np.argsort(record.token_ids, kind="stable")
    ids, times = record.token_ids[order], record.token_us[order]
    firsts, places = np.unique(ids, return_index=True)
    return dict(zip(firsts.tolist(), np.split(times, places[1:]), strict=True))


def _wait_s(from_us: int, to_us: int | None, end_us: int) -> float:
    """A wait; one that the run cut off counts as far as it got."""
    return ((end_us if to_us is None else to_us) - from_us) / 1e6


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else 0.0
