# SPDX-License-Identifier: MIT
"""Layouts resolve over the axes that a mesh really has."""

from __future__ import annotations

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


def test_show_leaves_out_what_is_whole() -> None:
    assert show({"dp": "S0", "tp": "R"}) == "S0(dp)"
    assert show({"dp": "R"}) == "R"
