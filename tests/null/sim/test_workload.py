# SPDX-License-Identifier: MIT
"""Worlds are functions of their seed, and leaving something out changes as little as possible of the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenspeed.sim.workload import FEATURES, Scenario, draw

SEEDS = range(40)


def options(scenario: Scenario) -> tuple[int, ...]:
    names = [name for name in dir(scenario.options) if name.endswith(("_max", "_total", "_tokens"))]
    return tuple(getattr(scenario.options, name) for name in names)


def test_equal_seeds_give_equal_worlds() -> None:
    for seed in SEEDS:
        one, other = draw(seed), draw(seed)
        assert replace(one, options=None) == replace(other, options=None)
        assert options(one) == options(other)


def test_every_feature_is_on_in_some_worlds_and_off_in_others() -> None:
    drawn = [draw(seed).features for seed in range(100)]
    for name in FEATURES:
        assert 5 < sum(name in features for features in drawn) < 95


@pytest.mark.parametrize("name", FEATURES)
def test_feature_left_out_is_off(name: str) -> None:
    assert all(name not in draw(seed, without=frozenset({name})).features for seed in SEEDS)


def test_session_left_out_leaves_the_others_as_they_were() -> None:
    for seed in SEEDS:
        whole = draw(seed)
        kept = draw(seed, sessions=frozenset({0, 2}))
        assert kept.sessions == tuple(session for session in whole.sessions if session.index in (0, 2))


def test_turns_continue_turns_before_them() -> None:
    for seed in SEEDS:
        for session in draw(seed).sessions:
            assert all(turn.parent is None or turn.parent < at for at, turn in enumerate(session.turns))
