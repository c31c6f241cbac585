# SPDX-License-Identifier: MIT
"""The gated feed-forward block: down(silu(gate x) * up x), gate and up fused at load."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tokenspeed import kernels
from tokenspeed.layers.layer import Build, Group, Layer
from tokenspeed.layers.linear import Linear, Projection
from tokenspeed.layers.step import StepContext
from tokenspeed.spmd.program import Call, Edge


class Gated(Layer):
    """[gate | up] -> silu(gate) * up, on whatever columns this rank has."""

    def __init__(self, build: Build, name: str, ffn: int, *, columns: int) -> None:
        super().__init__(build, name)
        self._ffn = ffn
        self._silu_mul = kernels.bind("activation.silu_mul", build.device, dtype=build.dtype, ffn=columns)

    def run(self, context: StepContext, x: Tensor) -> Tensor:
        """x [T, 2F] -> [T, F]."""
        del context
        return self._silu_mul(x)

    def calls(self) -> Iterator[Call]:
        yield Call(self.name, "gated", (Edge("gate_up"),), (Edge("gated", (), self._ffn),), self.run)

    def leaves(self) -> Iterator[Layer]:
        """Nothing to load."""
        return iter(())


def gated_mlp(
    build: Build,
    name: str,
    width: int,
    ffn: int,
    *,
    bias: bool = False,
    reads: str = "hidden",
    writes: str = "hidden",
) -> Group:
    """The block under `name`: columns of gate and up are spread over tp, so the result is Partial over tp."""
    halves = [Projection(f"{name}.{half}_proj", ffn) for half in ("gate", "up")]
    gate_up = Linear(
        build, f"{name}.gate_up_proj", halves, width, spread="rows", bias=bias, reads=reads, writes="gate_up"
    )
    down = [Projection(f"{name}.down_proj", width)]
    return Group(
        gate_up,
        Gated(build, f"{name}.gated", ffn, columns=gate_up.parameters[0].shape[0] // 2),
        Linear(
            build, f"{name}.down_proj", down, ffn, spread="columns", bias=bias, reads="gated", writes=writes
        ),
    )
