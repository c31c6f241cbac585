# SPDX-License-Identifier: MIT
"""The hash behind seeds: fixed for ever, even, and blind to the batch."""

from __future__ import annotations

import numpy as np
import pytest

from tokenspeed.kernels.ref.chance import uniform

PINNED = [0.6524484863740322, 0.7012121095215252, 0.36818951565166946, 0.39854775898749717]


def seeds(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_numbers_are_pinned_because_users_keep_seeds() -> None:
    drawn = uniform(seeds(0, 0, 1, 2**63 - 1), np.array([0, 1, 0, 10**6]))
    assert drawn.tolist() == PINNED


def test_a_number_depends_on_its_own_seed_and_position_only() -> None:
    many = uniform(np.arange(100, dtype=np.uint64), np.arange(100) * 7)
    assert [float(uniform(seeds(i), np.array([i * 7]))[0]) for i in range(100)] == many.tolist()


@pytest.mark.parametrize("along", ["positions", "seeds"])
def test_numbers_are_even_and_uncorrelated(along: str) -> None:
    count = 100_000
    line = np.arange(count)
    flat = np.full(count, 42)
    seed, position = (flat, line) if along == "positions" else (line, flat)
    drawn = uniform(seed.astype(np.uint64), position)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    observed, _ = np.histogram(drawn, bins=100, range=(0, 1))
    chi_square = float(((observed - count / 100) ** 2 / (count / 100)).sum())
    assert 60 < chi_square < 150  # 99 degrees of freedom: outside once in 10^3 honest generators
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.015
