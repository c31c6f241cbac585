# SPDX-License-Identifier: MIT
"""What a layer is, and what it is built with.

A `Layer` declares calls (ops over named values with placements) and the weights they use; it allocates
nothing until `install` hands it tensors, so a model of any size can be built, compiled, printed and measured
without memory. A `Module` groups layers and fixes their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tokenspeed.dist.mesh import Mesh
from tokenspeed.kernels import Device
from tokenspeed.spmd.compile import shard
from tokenspeed.spmd.program import Call, Weight
from tokenspeed.weights.parameter import Parameter, in_blocks

FP8_BLOCK = 128
"""Rows and columns of a block of format "fp8_block"."""


@dataclass(frozen=True, slots=True)
class Build:
    """What every layer is built with.

    `format`: how dense and expert weights are held: "native", "int8", or "fp8_block", which takes them as a
    block-scaled checkpoint has them; what cannot be held so is native. `encoded`: the checkpoint is in that format;
    else kernels round what is loaded. `kv`: how the context is held, "native" or "fp8".
    """

    mesh: Mesh
    dtype: torch.dtype
    device: Device
    block_tokens: int
    format: str = "native"
    encoded: bool = True
    kv: str = "native"


class Module(Protocol):
    """Anything that contributes calls to a program and layers to load."""

    def calls(self) -> Iterator[Call]:
        """The calls, in execution order."""
        ...

    def leaves(self) -> Iterator[Layer]:
        """The layers, in loading order."""
        ...


class Layer:
    """One call and its weights, declared at construction; tensors come with `install`."""

    @property
    def shares_blocks(self) -> bool:
        """Whether its kernel gains by knowing which rows begin with the same blocks."""
        return False

    def __init__(self, build: Build, name: str, weights: Sequence[Weight] = ()) -> None:
        self.build = build
        self.name = name
        self.weights = tuple(weights)
        self.parameters: tuple[Parameter, ...] = tuple(shard(weight, build.mesh) for weight in weights)

    def hold_encoded(self, count: int) -> str:
        """Take the first `count` parameters as the checkpoint encodes them, where the build says so and all can be.

        Their scales then come after all other parameters. Returns the format they will be in.
        """
        if self.build.format != "fp8_block" or not self.build.encoded:
            return self.build.format
        encoded = [in_blocks(parameter, FP8_BLOCK) for parameter in self.parameters[:count]]
        pairs = [pair for pair in encoded if pair is not None]
        if len(pairs) < count:
            return "native"
        values, scales = zip(*pairs, strict=True)
        self.parameters = (*values, *self.parameters[count:], *scales)
        return "fp8_block"

    def install(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take the tensors of `parameters`, in that order."""
        raise NotImplementedError(f"{type(self).__name__} has no weights")

    def calls(self) -> Iterator[Call]:
        """The calls, in execution order."""
        raise NotImplementedError

    def leaves(self) -> Iterator[Layer]:
        """Itself."""
        yield self


class Group:
    """Modules in order."""

    def __init__(self, *modules: Module) -> None:
        self.modules = modules

    def calls(self) -> Iterator[Call]:
        """The calls of every module, in order."""
        for module in self.modules:
            yield from module.calls()

    def leaves(self) -> Iterator[Layer]:
        """The layers of every module, in order."""
        for module in self.modules:
            yield from module.leaves()
