# SPDX-License-Identifier: MIT
"""The mesh: ranks arranged along named axes, and one rank's place in it.

In: a size per axis and a rank. Out: who shares a group with whom. It opens no connection and imports no
torch.

Two axes lay the ranks out, `dp` outermost and `tp` innermost; two more are other names for the same ranks:

    rank = dp_index * tp + tp_index
    ep   1, or every rank: experts are spread over (dp, tp), dp major
    sp   1, or tp: tokens are spread over the tp ranks between the sharded matmuls

An axis is known by its name, never by its size: tp=2 and dp=2 are different groups. Axes of size one do not
exist for the compiler, so the mesh of one rank compiles to no collectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokenspeed.base.errors import SetupError

AXES: Final = ("dp", "tp", "ep", "sp")
BASE_AXES: Final = ("dp", "tp")
"""The laid-out axes, outermost first: where both cut one dimension, tp cuts what dp left."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Sizes of the axes and the rank that looks at them (`Mesh()` is one rank alone)."""

    dp: int = 1
    tp: int = 1
    ep: int = 1
    sp: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        for axis in AXES:
            if self.size(axis) < 1:
                raise SetupError(f"mesh axis {axis} has size {self.size(axis)}; sizes start at 1")
        if self.ep not in (1, self.ranks):
            raise SetupError(f"mesh axis ep is {self.ep}; it must be 1 or dp * tp = {self.ranks}")
        if self.sp not in (1, self.tp):
            raise SetupError(f"mesh axis sp is {self.sp}; it must be 1 or tp = {self.tp}")
        if not 0 <= self.rank < self.ranks:
            raise SetupError(f"rank {self.rank} is outside a mesh of {self.ranks} ranks")

    @property
    def ranks(self) -> int:
        return self.dp * self.tp

    def size(self, axis: str) -> int:
        """The number of ranks along `axis`."""
        if axis not in AXES:
            raise SetupError(f"unknown mesh axis {axis!r}; axes are {', '.join(AXES)}")
        return int(getattr(self, axis))

    def base(self, axis: str) -> tuple[str, ...]:
        """The laid-out axes that `axis` covers, outermost first; empty when its size is one."""
        if self.size(axis) == 1:
            return ()
        covered = {"dp": ("dp",), "tp": ("tp",), "ep": BASE_AXES, "sp": ("tp",)}[axis]
        return tuple(name for name in covered if self.size(name) > 1)

    def index(self, axis: str) -> int:
        """This rank's position along `axis`."""
        if self.size(axis) == 1:
            return 0
        return {"dp": self.rank // self.tp, "tp": self.rank % self.tp, "ep": self.rank}.get(
            axis, self.rank % self.tp
        )

    def group(self, axis: str) -> tuple[int, ...]:
        """The ranks that share every other laid-out axis with this one, in order along `axis`."""
        covered = self.base(axis)
        dp_indexes = range(self.dp) if "dp" in covered else (self.rank // self.tp,)
        tp_indexes = range(self.tp) if "tp" in covered else (self.rank % self.tp,)
        return tuple(d * self.tp + t for d in dp_indexes for t in tp_indexes)

    def at(self, rank: int) -> Mesh:
        """The same mesh seen from another rank."""
        return Mesh(dp=self.dp, tp=self.tp, ep=self.ep, sp=self.sp, rank=rank)

    def __str__(self) -> str:
        return " ".join(f"{axis}={self.size(axis)}" for axis in AXES if self.size(axis) > 1) or "one rank"
