# SPDX-License-Identifier: MIT
"""Placements: how a tensor lies across the ranks of a named axis.

This is the narrow waist between models and collectives: layers declare `Layout`s, the compiler reads nothing
else.

    Replicate(axis)     every rank holds the whole tensor
    Shard(dim, axis)    rank i holds the i-th slice along `dim`
    Partial(axis, op)   every rank holds a term; `op` over the ranks gives the tensor

A `Layout` names the axes it cares about; axes it leaves out pass through as they come. `Lie` is one placement
with its axis taken away: what the rules of `verify` and the state of `compile` are written in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tokenspeed.dist.mesh import Mesh

Lie = Literal["R", "S0", "S1", "S2", "P"]
Lies = dict[str, Lie]
"""Laid-out axis -> how a value lies along it."""

_SHARDS: Mapping[int, Lie] = {0: "S0", 1: "S1", 2: "S2"}


@dataclass(frozen=True, slots=True)
class Replicate:
    axis: str

    @property
    def lie(self) -> Lie:
        return "R"

    def __str__(self) -> str:
        return f"Replicate({self.axis})"


@dataclass(frozen=True, slots=True)
class Shard:
    dim: int
    axis: str

    @property
    def lie(self) -> Lie:
        return _SHARDS[self.dim]

    def __str__(self) -> str:
        return f"Shard({self.dim}, {self.axis})"


@dataclass(frozen=True, slots=True)
class Partial:
    axis: str
    op: Literal["sum"] = "sum"

    @property
    def lie(self) -> Lie:
        return "P"

    def __str__(self) -> str:
        return f"Partial({self.op}, {self.axis})"


Placement = Replicate | Shard | Partial
Layout = tuple[Placement, ...]


def resolve(layout: Layout, mesh: Mesh) -> Lies:
    """Write a layout over the laid-out axes of `mesh`.

    Axes of size one vanish. A later entry wins where two names cover the same ranks, so `(Replicate("tp"),
    Shard(0, "sp"))` reads: whole on every tp rank, unless the mesh spreads tokens over them.
    """
    lies: Lies = {}
    for placement in layout:
        for axis in mesh.base(placement.axis):
            lies[axis] = placement.lie
    return lies


def along(lies: Mapping[str, Lie], axis: str) -> Lie:
    """How a value lies along `axis`; whole where nothing is said."""
    return lies.get(axis) or "R"


def show(lies: Mapping[str, Lie]) -> str:
    """A compact spelling for the printed program: `P(tp)`, `S0(dp) S1(tp)`; `R` where nothing is spread."""
    spread = [f"{lie}({axis})" for axis, lie in sorted(lies.items()) if lie != "R"]
    return " ".join(spread) or "R"
