# SPDX-License-Identifier: MIT
"""A parameter as one rank needs it: its local shape and the tensor regions that fill it.

Plain values: derived from layer annotations by `spmd.compile.shard`, read by `weights.load`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fill:
    """Copy `source[take]` into `parameter[into]`; `shape` is what the source must measure as a whole."""

    source: str
    shape: tuple[int, ...]
    take: tuple[slice, ...]
    into: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a layer on one rank.

    `dtype` is "model" (the dtype the model runs in) or "float32". `fill` is what random weights hold:
    "normal", "ones" or "zeros". `sources` are all checkpoint tensors the whole parameter comes from, on any
    rank; a parameter with sources and no fills is held by another rank and is zero here.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    fill: str
    fills: tuple[Fill, ...]
    sources: tuple[str, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)
