# SPDX-License-Identifier: MIT
"""Process groups of a mesh over torch.distributed: what a compiled program of several ranks moves data with.

In: a mesh and an initialised default process group whose rank and size are the mesh's. Out: `move`, the one
entry of `spmd.program.Collectives`. Every rank must make the same moves in the same order, which a compiled
program ensures. Slices along dim 0 must be equal on all ranks of a group.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tokenspeed.base.errors import SetupError
from tokenspeed.dist.mesh import Mesh


class ProcessGroups:
    """The groups this rank is a member of, one per laid-out axis of more than one rank."""

    def __init__(self, mesh: Mesh) -> None:
        if dist.get_world_size() != mesh.ranks or dist.get_rank() != mesh.rank:
            raise SetupError(
                f"mesh {mesh} has rank {mesh.rank} of {mesh.ranks}; "
                f"torch.distributed runs rank {dist.get_rank()} of {dist.get_world_size()}"
            )
        self._mesh = mesh
        self._groups: dict[str, dist.ProcessGroup] = {}
        for axis in ("dp", "tp"):
            # Every rank opens every group, in one order: torch.distributed requires it.
            for ranks in dict.fromkeys(mesh.at(rank).group(axis) for rank in range(mesh.ranks)):
                group = dist.new_group(list(ranks)) if len(ranks) > 1 else None
                if isinstance(group, dist.ProcessGroup) and mesh.rank in ranks:
                    self._groups[axis] = group

    def move(self, kind: str, value: Tensor, *, axis: str, dim: int) -> Tensor:
        """Return `value` after the collective `kind` over `axis`; the argument is left as it was."""
        ranks, index = self._mesh.size(axis), self._mesh.index(axis)
        match kind:
            case "slice":
                return value.chunk(ranks, dim)[index].contiguous()
            case "all_reduce":
                return self._all_reduce(value, axis)
            case "reduce_scatter":
                return self._all_reduce(value, axis).chunk(ranks, dim)[index].contiguous()
            case "all_gather":
                return torch.cat(self._all_gather(value, axis), dim)
            case "all_to_all":
                # S0 <-> S1: gather along the dimension that was spread, keep this rank's part of the other.
                whole = torch.cat(self._all_gather(value, axis), 1 - dim)
                return whole.chunk(ranks, dim)[index].contiguous()
            case _:
                raise AssertionError(f"unknown collective {kind}")

    def _all_reduce(self, value: Tensor, axis: str) -> Tensor:
        total = value.clone()
        dist.all_reduce(total, group=self._groups[axis])
        return total

    def _all_gather(self, value: Tensor, axis: str) -> list[Tensor]:
        value = value.contiguous()
        parts = [torch.empty_like(value) for _ in range(self._mesh.size(axis))]
        dist.all_gather(parts, value, group=self._groups[axis])
        return parts
