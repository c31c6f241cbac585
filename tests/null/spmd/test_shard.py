# SPDX-License-Identifier: MIT
"""Weight shards derive from placements: together they are the weight, each exactly once."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest

from tokenspeed import models
from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh
from tokenspeed.spmd.compile import local_units, shard
from tokenspeed.spmd.placement import Partial, Shard
from tokenspeed.spmd.program import Part, Weight


def cells(take: tuple[slice, ...]) -> set[tuple[int, ...]]:
    return set(product(*(range(s.start, s.stop) for s in take)))


def test_ranks_together_hold_every_element(config: dict[str, Any], mesh: Mesh) -> None:
    """Each element of each checkpoint tensor is held by equally many ranks, at least one, in the right
    shape.
    """
    holders: dict[str, Counter[tuple[int, ...]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rank in range(mesh.ranks):
        for layer in models.build(config, mesh=mesh.at(rank)).loadables():
            for parameter in layer.parameters:
                for fill in parameter.fills:
                    assert (
                        tuple(s.stop - s.start for s in fill.take)
                        == tuple(s.stop - s.start for s in fill.into)[-len(fill.take) :]
                    )
                    shapes[fill.source] = fill.shape
                    holders.setdefault(fill.source, Counter()).update(cells(fill.take))
    for source, counted in holders.items():
        size = 1
        for extent in shapes[source]:
            size *= extent
        assert len(counted) == size, source
        assert len(set(counted.values())) == 1, source


def test_fewer_heads_than_ranks_are_repeated() -> None:
    assert [local_units(Mesh(tp=8, rank=rank), "tp", 2, "kv", repeats=True) for rank in (0, 3, 4, 7)] == [
        range(1),
        range(1),
        range(1, 2),
        range(1, 2),
    ]


def test_heads_that_do_not_spread_are_refused() -> None:
    with pytest.raises(SetupError, match=r"kv heads: 6 do not spread over tp=4; sizes that divide 6 work"):
        local_units(Mesh(tp=4), "tp", 6, "kv heads", repeats=True)


def test_query_heads_are_never_repeated(config: dict[str, Any]) -> None:
    """Two ranks with one query head would add its output twice."""
    with pytest.raises(SetupError, match=r"8 do not spread over tp=16"):
        models.build(config, mesh=Mesh(tp=16))


def test_uneven_columns_are_refused_by_name() -> None:
    weight = Weight("block.w", ((Part("block.w.weight", (8, 6)),),), (Shard(1, "tp"),))
    with pytest.raises(SetupError, match=r"block\.w\.weight dim 1: 6 do not spread over tp=4"):
        shard(weight, Mesh(tp=4))


def test_partial_bias_is_held_by_the_first_rank_alone() -> None:
    weight = Weight("b", ((Part("b.bias", (8,)),),), (Partial("tp"),))
    assert shard(weight, Mesh(tp=2)).fills
    other = shard(weight, Mesh(tp=2, rank=1))
    assert (other.fills, other.shape, other.sources) == ((), (8,), ("b.bias",))
