# SPDX-License-Identifier: MIT
"""A parameter as one rank needs it: its local shape and the tensor regions that fill it.

Plain values: derived from layer annotations by `spmd.compile.shard`, read by `weights.load`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


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

    `dtype` is "model" (the dtype the model runs in), "float32", or "float8" (e4m3 as the checkpoint has it, not
    decoded). `fill` is what random weights hold: "normal", "ones" or "zeros". `sources` are all checkpoint
    tensors the whole parameter comes from, on any rank; a parameter with sources and no fills is held by another
    rank and is zero here.
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

    def bytes(self, model_item_bytes: int) -> int:
        """How much memory it takes in a model whose dtype has items of this size."""
        return self.elements * {"model": model_item_bytes, "float32": 4, "float8": 1}[self.dtype]


def in_blocks(parameter: Parameter, size: int) -> tuple[Parameter, Parameter] | None:
    """A parameter as a block-scaled checkpoint stores it: its e4m3 values, and its scales.

    The scales are laid out like the values, one for each `size` x `size` of them. None where a rank's cut or a
    seam between joined sources goes through a block, so that this cannot be: then values must be decoded.
    """
    if len(parameter.shape) < 2 or not parameter.fills:
        return None
    fills: list[Fill] = []
    for fill in parameter.fills:
        matrix = fill.into[-2:]
        ragged = [
            take.start % size or (take.stop % size and take.stop != whole) or into.start % size
            for take, whole, into in zip(fill.take, fill.shape, matrix, strict=True)
        ]
        if any(ragged):
            return None
        fills.append(
            Fill(
                f"{fill.source}_scale_inv",
                tuple(-(-whole // size) for whole in fill.shape),
                tuple(_in_blocks(take, size) for take in fill.take),
                (*fill.into[:-2], *(_in_blocks(into, size) for into in matrix)),
            )
        )
    values = replace(parameter, dtype="float8")
    scales = Parameter(
        name=f"{parameter.name}_scale_inv",
        shape=(*parameter.shape[:-2], *(-(-whole // size) for whole in parameter.shape[-2:])),
        dtype="float32",
        fill="ones",
        fills=tuple(fills),
        sources=tuple(f"{source}_scale_inv" for source in parameter.sources),
    )
    return values, scales


def _in_blocks(span: slice, size: int) -> slice:
    return slice(span.start // size, -(-span.stop // size))
