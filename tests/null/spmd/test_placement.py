# SPDX-License-Identifier: MIT
"""Meshes name groups by axis; layouts resolve over the axes that exist."""

from __future__ import annotations

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh
from tokenspeed.spmd.placement import Partial, Replicate, Shard, resolve, show


def test_axes_of_one_rank_vanish() -> None:
    assert resolve((Shard(0, "dp"), Partial("tp"), Replicate("ep")), Mesh()) == {}


def test_ep_covers_every_laid_out_axis() -> None:
    assert resolve((Shard(0, "ep"),), Mesh(dp=2, tp=2, ep=4)) == {"dp": "S0", "tp": "S0"}


def test_later_name_of_the_same_ranks_wins() -> None:
    layout = (Replicate("tp"), Shard(0, "sp"))
    assert resolve(layout, Mesh(tp=2)) == {"tp": "R"}
    assert resolve(layout, Mesh(tp=2, sp=2)) == {"tp": "S0"}


def test_groups_of_equal_size_are_different_groups() -> None:
    mesh = Mesh(dp=2, tp=2, rank=3)
    assert mesh.group("dp") == (1, 3)
    assert mesh.group("tp") == (2, 3)
    assert mesh.base("ep") == ()


def test_every_rank_is_in_one_group_per_axis() -> None:
    mesh = Mesh(dp=2, tp=4, ep=8)
    for axis in ("dp", "tp", "ep"):
        groups = {mesh.at(rank).group(axis) for rank in range(mesh.ranks)}
        assert sorted(rank for group in groups for rank in group) == list(range(8))
        assert all(mesh.at(rank).group(axis)[mesh.at(rank).index(axis)] == rank for rank in range(8))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"tp": 0}, "tp has size 0"),
        ({"tp": 2, "ep": 3}, "ep is 3; it must be 1 or dp * tp = 2"),
        ({"tp": 4, "sp": 2}, "sp is 2; it must be 1 or tp = 4"),
        ({"tp": 2, "rank": 2}, "rank 2 is outside"),
    ],
)
def test_impossible_meshes_are_refused(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(SetupError, match=words.replace("*", r"\*")):
        Mesh(**sizes)


def test_show_leaves_out_what_is_whole() -> None:
    assert show({"dp": "S0", "tp": "R"}) == "S0(dp)"
    assert show({"dp": "R"}) == "R"
