# SPDX-License-Identifier: MIT
"""Both ends of a model: token ids to vectors, rows to sample, vectors to logits.

The vocabulary is cut by rows over tp at both ends: a lookup gives Partial vectors (zero where the id is
another rank's), a head gives its rank's logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenspeed import kernels
from tokenspeed.layers.layer import Build, Layer
from tokenspeed.layers.step import StepContext
from tokenspeed.spmd.placement import Layout, Partial, Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Part, Weight

ROWS = (Shard(0, "dp"),)
"""Token ids and sample rows: each dp rank has its own."""


class Embedding(Layer):
    """ids [T] -> [T, C]."""

    def __init__(self, build: Build, name: str, vocab: int, width: int) -> None:
        weight = Weight(f"{name}.weight", ((Part(f"{name}.weight", (vocab, width)),),), (Shard(0, "tp"),))
        super().__init__(build, name, (weight,))
        self.vocab, self.width = vocab, width
        self._lookup = kernels.bind("embedding.lookup", build.device, dtype=build.dtype, width=width)
        self._rows = self.parameters[0].shape[0]
        self._first = self._rows * build.mesh.index("tp") if self._rows < vocab else 0
        self.table: Tensor

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the table [V, C]."""
        (self.table,) = tensors

    def run(self, context: StepContext, ids: Tensor) -> Tensor:
        """ids [T] -> vectors [T, C]; zero for ids of other ranks."""
        del context
        if self._rows == self.vocab:
            return self._lookup(ids, self.table)
        local = ids - self._first
        mine = (local >= 0) & (local < self._rows)
        found: Tensor = self._lookup(torch.where(mine, local, 0), self.table)
        return found.masked_fill_(~mine.unsqueeze(1), 0)

    def calls(self) -> Iterator[Call]:
        yield Call(
            self.name,
            "lookup",
            (Edge("tokens", (Replicate("tp"),)),),
            (Edge("hidden", (Partial("tp"),), self.width),),
            self.run,
            self.weights,
        )


class Select(Layer):
    """Keep the rows that are sampled, of one value: what follows costs S rows and not T.

    Sampled rows are distinct and in order, so where there are as many as rows they are all of them.
    """

    def __init__(self, build: Build, value: str, width: int, *, layout: Layout = ()) -> None:
        super().__init__(build, f"select.{value}")
        self._value, self._width, self._layout = value, width, layout

    def run(self, context: StepContext, x: Tensor, index: Tensor) -> Tensor:
        """x [T, C], index [S] -> [S, C]."""
        del context
        return x if index.shape[0] == x.shape[0] else x.index_select(0, index)

    def calls(self) -> Iterator[Call]:
        reads = (Edge(self._value, self._layout), Edge("sampled"))
        yield Call(self.name, "select", reads, (Edge(self._value, (), self._width),), self.run)

    def leaves(self) -> Iterator[Layer]:
        """Nothing to load."""
        return iter(())


class Head(Layer):
    """hidden [S, C] -> logits [S, V] float32. With `tied`, its weight is the embedding's table."""

    def __init__(self, build: Build, name: str, vocab: int, width: int, *, tied: Embedding | None) -> None:
        source = f"{tied.name if tied else name}.weight"
        weight = Weight(f"{name}.weight", ((Part(source, (vocab, width)),),), (Shard(0, "tp"),))
        super().__init__(build, name, (weight,))
        self._vocab, self._tied = vocab, tied
        self._dense = kernels.bind(
            "linear.dense",
            build.device,
            dtype=build.dtype,
            in_dim=width,
            out_dim=self.parameters[0].shape[0],
            bias=False,
            format="native" if build.format == "fp8_block" else build.format,
            float32_out=True,
        )
        if tied:
            self.parameters = ()
        self._weight: Any = None

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the weight [V, C]; a tied head comes after its embedding and takes its table."""
        table = self._tied.table if self._tied else tensors[0]
        self._weight = self._dense.prepare(table, None)

    def run(self, context: StepContext, x: Tensor) -> Tensor:
        """x [S, C] -> [S, V] float32."""
        del context
        return self._dense(x, self._weight)

    def calls(self) -> Iterator[Call]:
        yield Call(
            self.name,
            "matmul",
            (Edge("hidden", (Replicate("tp"),)),),
            (Edge("logits", (Shard(1, "tp"),), self._vocab, item_bytes=4),),
            self.run,
            self.weights,
        )
