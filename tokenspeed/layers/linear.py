# SPDX-License-Identifier: MIT
"""Linear layers: one matmul over one or several projections fused at load.

In: a value [T, I]. Out: a value [T, O], where O joins the rows of every projection ([q | k | v], [gate |
up]).

    spread "rows"      each rank holds some rows of every projection   R  -> S1   (column-parallel)
    spread "columns"   each rank holds some columns                    S1 -> P    (row-parallel)
    spread "none"      every rank holds all of it                      as it comes

A `LinearPair` multiplies once for two projections of one value that lie differently: "rows" and "none".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenspeed import kernels
from tokenspeed.layers.layer import FP8_BLOCK, Build, Layer
from tokenspeed.layers.step import StepContext
from tokenspeed.spmd.placement import Layout, Partial, Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Part, Weight

Spread = Literal["rows", "columns", "none"]


@dataclass(frozen=True, slots=True)
class Projection:
    """One weight of the checkpoint (`<source>.weight` [rows, I]); `units` heads are never cut through.

    With `repeats`, fewer heads than ranks are held by several ranks each.
    """

    source: str
    rows: int
    units: int = 0
    repeats: bool = False


_PLACES: dict[Spread, tuple[Layout, Layout, Layout, Layout]] = {
    # spread: read, weight, bias, write
    "rows": ((Replicate("tp"),), (Shard(0, "tp"),), (Shard(0, "tp"),), (Shard(1, "tp"),)),
    "columns": ((Shard(1, "tp"),), (Shard(1, "tp"),), (Partial("tp"),), (Partial("tp"),)),
    "none": ((), (), (), ()),
}


class Linear(Layer):
    """y = x W^T + b over the joined rows of `projections`."""

    def __init__(
        self,
        build: Build,
        name: str,
        projections: Sequence[Projection],
        columns: int,
        *,
        spread: Spread,
        bias: bool = False,
        reads: str = "hidden",
        writes: str = "hidden",
    ) -> None:
        self._reads, place, bias_place, self._writes = _PLACES[spread]
        self._from, self._to = reads, writes
        self._columns = sum(projection.rows for projection in projections)
        self._packed = len(projections) > 1
        weights = [
            Weight(
                f"{name}.weight",
                (
                    tuple(
                        Part(f"{p.source}.weight", (p.rows, columns), p.units, p.repeats) for p in projections
                    ),
                ),
                place,
            )
        ]
        if bias:
            parts = tuple(Part(f"{p.source}.bias", (p.rows,), p.units, p.repeats) for p in projections)
            weights.append(Weight(f"{name}.bias", (parts,), bias_place))
        super().__init__(build, name, weights)
        rows_local, columns_local = self.parameters[0].shape
        self._biased = bias
        self._dense = kernels.bind(
            "linear.dense",
            build.device,
            dtype=build.dtype,
            in_dim=columns_local,
            out_dim=rows_local,
            bias=bias,
            format=self.hold_encoded(1),
        )
        self._weight: Any = None

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the weight, the bias if there is one, the scales if the weight is encoded."""
        weight, *rest = tensors
        self._weight = self._dense.prepare(weight, rest.pop(0) if self._biased else None, *rest)

    def run(self, context: StepContext, x: Tensor) -> Tensor:
        """x [T, I] -> [T, O]."""
        del context
        return self._dense(x, self._weight)

    def calls(self) -> Iterator[Call]:
        yield Call(
            self.name,
            "matmul_bias" if len(self.weights) > 1 else "matmul",
            (Edge(self._from, self._reads),),
            (Edge(self._to, self._writes, self._columns, packed=self._packed),),
            self.run,
            self.weights,
        )


class LinearPair(Layer):
    """Two projections of one value, x -> (x W1^T, x W2^T): each rank has some rows of W1 and all of W2."""

    def __init__(
        self,
        build: Build,
        name: str,
        spread: Projection,
        whole: Projection,
        columns: int,
        *,
        reads: str = "hidden",
        writes: tuple[str, str],
    ) -> None:
        self._from, self._to, self._rows = reads, writes, (spread.rows, whole.rows)
        weights = [
            Weight(
                f"{p.source}.weight",
                ((Part(f"{p.source}.weight", (p.rows, columns), p.units, p.repeats),),),
                place,
            )
            for p, place in ((spread, (Shard(0, "tp"),)), (whole, ()))
        ]
        super().__init__(build, name, weights)
        self._seam = self.parameters[0].shape[0]
        seamless = build.format != "fp8_block" or not build.encoded or self._seam % FP8_BLOCK == 0
        self._dense = kernels.bind(
            "linear.dense",
            build.device,
            dtype=build.dtype,
            in_dim=columns,
            out_dim=self._seam + whole.rows,
            bias=False,
            format=self.hold_encoded(2) if seamless else "native",
        )
        self._weight: Any = None

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take both weights, and both their scales if they are encoded; they are held as one matrix."""
        weight, *scales = (torch.cat(list(tensors[i : i + 2])) for i in range(0, len(tensors), 2))
        self._weight = self._dense.prepare(weight, None, *scales)

    def run(self, context: StepContext, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, I] -> [T, O1] and [T, O2], which are columns of one tensor."""
        del context
        y: Tensor = self._dense(x, self._weight)
        return y[:, : self._seam], y[:, self._seam :]

    def calls(self) -> Iterator[Call]:
        places = ((Shard(1, "tp"),), (Replicate("tp"),))
        yield Call(
            self.name,
            "matmul_pair",
            (Edge(self._from, (Replicate("tp"),)),),
            tuple(Edge(*written) for written in zip(self._to, places, self._rows, strict=True)),
            self.run,
            self.weights,
        )
