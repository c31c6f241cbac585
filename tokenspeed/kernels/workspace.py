# SPDX-License-Identifier: MIT
"""Counters that blocks of one launch meet at, zero between launches.

In: a device. Out: an int32 tensor of zeros, the same one for every kernel of the device: launches are ordered
by their stream, and the last block to arrive at a counter puts it back to zero, so a graph replays without a
memset. A kernel that fails to put back what it took breaks every later one; its tests look.
"""

from __future__ import annotations

import functools
from typing import Final

import torch

COUNTERS: Final = 1 << 16


@functools.cache
def counters(device: torch.device) -> torch.Tensor:
    """[COUNTERS] int32 zeros on `device`, made at the first call (never inside a graph capture)."""
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)
