# SPDX-License-Identifier: MIT
"""A mesh names groups by axis, never by size, and refuses sizes that do not fit together."""

from __future__ import annotations

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh


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
