# SPDX-License-Identifier: MIT
"""Random numbers that depend on a seed and a position and on nothing else.

In: seeds and positions of rows. Out: one number in [0, 1) for each. It is a hash, not a stream: no state, no
order of drawing, so a request draws the same numbers alone or in a batch, chunked or whole, before and after
it was sent back, on every device (the hash runs on the host, in integers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Odd, and near 2^64 divided by the golden ratio: consecutive counters land far apart."""


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 53 random bits for each (seed, position), as a number in [0, 1)."""
    counters = _mixed(seeds) + positions.astype(np.uint64) * GOLDEN
    return (_mixed(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits one to one, each input bit into every output bit (the finaliser of SplitMix64)."""
    x = (x + GOLDEN).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
