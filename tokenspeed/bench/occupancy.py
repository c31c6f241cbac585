# SPDX-License-Identifier: MIT
"""How full is the KV memory while a level runs? Asked of `/metrics`, where a server has that page.

In: a connection of its own, a clock. Out: (microseconds, share) once a second, in the server's own words: the
share of KV that requests hold, cached prefixes that nobody uses left out. A server without the page, or without
a figure known here, gives no samples; nothing else depends on them.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from tokenspeed.base.clock import Clock
from tokenspeed.bench.client import Connection

PERIOD_S: Final = 1.0
SHARES: Final = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
)
"""Gauges of other engines that say a share, 0 to 1."""
_LINE: Final = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


def occupancy(page: str) -> float | None:
    """The share of KV that requests hold, from a page of Prometheus text; None when it does not say."""
    values = {name: float(value) for name, value in _LINE.findall(page)}
    for name in SHARES:
        if name in values:
            return values[name]
    total = values.get("tokenspeed_blocks_total")
    if not total:
        return None
    idle = values.get("tokenspeed_blocks_free", 0.0) + values.get("tokenspeed_blocks_cached", 0.0)
    return 1 - idle / total


async def sample(connection: Connection, clock: Clock, samples: list[tuple[int, float]]) -> None:
    """Append a sample every second until cancelled, or until the server does not say."""
    try:
        while True:
            reply = await connection.exchange("GET", "/metrics")
            share = occupancy(reply.body.decode("utf-8", "replace")) if reply.status == 200 else None
            if share is None:
                return
            samples.append((clock.now_us(), share))
            await asyncio.sleep(PERIOD_S)
    finally:
        connection.close()
