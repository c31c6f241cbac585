# SPDX-License-Identifier: MIT
"""RMS norms, alone and fused with the residual stream.

    RmsNorm("alone")   hidden -> hidden                            a norm inside a block
    RmsNorm("first")   hidden -> hidden, residual                  opens the residual stream
    RmsNorm("add")     hidden, residual -> hidden, residual        adds, then normalises the sum

The call after a norm may do its work too (`program.Joint`): its constants are weight and eps.
A norm needs all features of a token. With tokens spread over tp (`sp`) it works on its rank's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor

from tokenspeed import kernels
from tokenspeed.layers.layer import Build, Layer
from tokenspeed.layers.step import StepContext
from tokenspeed.spmd.placement import Layout, Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Part, Weight

STREAM: Layout = (Replicate("tp"), Shard(0, "sp"))
"""Where the hidden and residual streams lie between blocks."""


NormConstants = tuple[Tensor, float]
"""Weight [C] and eps of a norm, for the call that does its work."""


class RmsNorm(Layer):
    """Root-mean-square norm over the features of a token."""

    def __init__(
        self,
        build: Build,
        name: str,
        width: int,
        eps: float,
        *,
        kind: Literal["first", "add"],
        layout: Layout = STREAM,
    ) -> None:
        super().__init__(build, name, (norm_weight(name, width),))
        self._kind, self._eps, self._layout, self._width = kind, eps, layout, width
        op = "norm.rms" if kind == "first" else "norm.add_rms"
        self._norm = kernels.bind(op, build.device, dtype=build.dtype, width=width)
        self._weight: Tensor

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the weight [C]."""
        (self._weight,) = tensors

    def run_first(self, context: StepContext, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, C] -> normalised x, and x itself as the residual."""
        del context
        return self._norm(x, self._weight, self._eps), x

    def run_add(self, context: StepContext, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """x, residual [T, C] -> normalised sum, and the sum."""
        del context
        return self._norm(x, residual, self._weight, self._eps)

    def calls(self) -> Iterator[Call]:
        values = ("hidden",) if self._kind == "first" else ("hidden", "residual")
        yield Call(
            self.name,
            f"norm_{self._kind}",
            tuple(Edge(value, self._layout) for value in values),
            tuple(Edge(value, self._layout, self._width) for value in ("hidden", "residual")),
            self.run_first if self._kind == "first" else self.run_add,
            self.weights,
            lambda: (self._weight, self._eps),
        )


class SliceNorm(Layer):
    """An RMS norm of the first `width` features of a packed value (MLA: the query latent)."""

    def __init__(self, build: Build, name: str, width: int, eps: float, *, reads: str, writes: str) -> None:
        super().__init__(build, name, (norm_weight(name, width),))
        self._eps, self._width, self._from, self._to = eps, width, reads, writes
        self._norm = kernels.bind("norm.rms", build.device, dtype=build.dtype, width=width)
        self._weight: Tensor

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the weight [width]."""
        (self._weight,) = tensors

    def run(self, context: StepContext, x: Tensor) -> Tensor:
        """x [T, >= width] -> [T, width]."""
        del context
        return self._norm(x[:, : self._width], self._weight, self._eps)

    def calls(self) -> Iterator[Call]:
        yield Call(
            self.name, "norm", (Edge(self._from),), (Edge(self._to, (), self._width),), self.run, self.weights
        )


def norm_weight(name: str, width: int) -> Weight:
    """The weight [width] of a norm: whole on every rank."""
    return Weight(f"{name}.weight", ((Part(f"{name}.weight", (width,)),),), fill="ones")
