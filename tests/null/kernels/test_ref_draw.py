# SPDX-License-Identifier: MIT
"""Drawing against the distribution worked out plainly: `chance` is swept, so frequencies are exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenspeed.kernels.ref import draw as module
from tokenspeed.kernels.ref.draw import Knobs, draw, likeliest, threshold

SWEEP = 1000
SMALL = [2.0, -1.0, 0.5, 0.5, 0.5, 3.0, -9.0, 0.0, -math.inf, 2.5]


def knobs(
    rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Knobs:
    """Parameters of `rows` equal rows whose chances sweep [0, 1) evenly."""

    def column(value: float) -> Tensor:
        return torch.full((rows,), value, dtype=torch.float64)

    chance = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    return Knobs(column(temperature), column(top_k).long(), column(top_p), column(min_p), chance)


def plain(
    scores: list[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """Work the distribution out token by token."""
    likely = [math.exp((score - max(scores)) / temperature) for score in scores]
    order = sorted(range(len(scores)), key=lambda i: (-likely[i], i))
    kept = set(order[: top_k or len(order)])
    mass, goal = 0.0, top_p * sum(likely[i] for i in kept)
    edge = 0.0
    for i in order:
        if i in kept and mass < goal * (1 - 1e-9):
            mass += likely[i]
            edge = likely[i]
    kept = {i for i in kept if likely[i] >= edge and likely[i] >= min_p}
    total = sum(likely[i] for i in kept)
    return [likely[i] / total if i in kept else 0.0 for i in range(len(scores))]


def frequencies(scores: list[float], narrow: bool, **given: Any) -> np.ndarray:
    table = torch.tensor(scores).expand(SWEEP, -1).contiguous()
    top_k = given.pop("top_k", 0)
    parameters = knobs(SWEEP, top_k=top_k or len(scores), **given)
    if narrow:
        tokens = draw(table, parameters, narrow_k=top_k or len(scores))
    else:
        tokens = draw(table, parameters, top_k=True, top_p=True)
    return np.bincount(tokens.numpy(), minlength=len(scores)) / SWEEP


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 4.0},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 1e-9},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": 6},
        {"top_k": 2, "top_p": 0.62},
        {"temperature": 0.7, "top_k": 6, "top_p": 0.95, "min_p": 0.02},
    ],
)
def test_tokens_come_as_often_as_they_should(narrow: bool, given: dict[str, Any]) -> None:
    np.testing.assert_allclose(frequencies(SMALL, narrow, **given), plain(SMALL, **given), atol=2 / SWEEP)


def test_equals_at_the_edge_of_top_k() -> None:
    scores = [1.0, 5.0, 1.0, 1.0]
    assert (frequencies(scores, True, top_k=2, temperature=50.0) > 0).tolist() == [True, True, False, False]
    assert (frequencies(scores, False, top_k=2, temperature=50.0) > 0).tolist() == [True, True, True, True]


def test_wide_vocabulary_with_wide_top_k() -> None:
    scores = (torch.randperm(700, generator=torch.Generator().manual_seed(1)).float() / 100).tolist()
    seen = frequencies(scores, False, top_k=300)
    assert set(np.flatnonzero(seen)) <= set(np.argsort(scores)[-300:])
    np.testing.assert_allclose(seen, plain(scores, top_k=300), atol=2 / SWEEP)


def test_rows_with_their_own_parameters() -> None:
    scores = torch.tensor([SMALL] * 3)
    mixed = Knobs(
        temperature=torch.tensor([1.0, 0.01, 5.0], dtype=torch.float64),
        top_k=torch.tensor([10, 10, 2]),
        top_p=torch.tensor([1e-6, 1.0, 1.0], dtype=torch.float64),
        min_p=torch.zeros(3, dtype=torch.float64),
        chance=torch.tensor([0.99, 0.5, 0.999], dtype=torch.float64),
    )
    assert draw(scores, mixed, top_k=True, top_p=True).tolist() == [5, 5, 9]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(64, 50, generator=torch.Generator().manual_seed(2))
    whole = draw(scores, knobs(64, top_p=0.8, top_k=50), top_p=True)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * 2048)
    assert torch.equal(draw(scores, knobs(64, top_p=0.8, top_k=50), top_p=True), whole)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("narrow_k", [0, 4])
def test_row_that_is_not_finite_disturbs_no_other(bad: float, narrow_k: int) -> None:
    scores = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    parameters = knobs(3, top_p=0.9, top_k=narrow_k or 8)
    want = draw(scores, parameters, narrow_k=narrow_k, top_k=True, top_p=True)
    scores[1] = bad
    got = draw(scores, parameters, narrow_k=narrow_k, top_k=True, top_p=True)
    assert got[[0, 2]].tolist() == want[[0, 2]].tolist()
    assert 0 <= int(got[1]) < 8


def test_last_chance_never_draws_what_is_cut() -> None:
    scores = torch.tensor([[0.0, 0.0, -50.0, -math.inf]])
    column = torch.ones(1, dtype=torch.float64)
    extreme = Knobs(column, torch.tensor([4]), column, column * 0, column * (1 - 2.0**-53))
    assert draw(scores, extreme).tolist() == [1]


def test_likeliest_orders_as_numbers_do_and_equals_by_id() -> None:
    scores = torch.tensor([[-1.0, 3.0, -2.0, 3.0, 0.5, -1.0, -math.inf, math.inf]])
    values, ids = likeliest(scores, 7)
    assert ids.tolist() == [[7, 1, 3, 4, 0, 5, 2]]
    assert values.tolist() == [[math.inf, 3.0, 3.0, 0.5, -1.0, -1.0, -2.0]]


@pytest.mark.parametrize("seed", range(20))
def test_threshold_equals_a_search_by_sorting(seed: int) -> None:
    chance = np.random.default_rng(seed)
    high = int(chance.choice([3, 1000, 0x3F800000]))
    keys, weights = chance.integers(0, high + 1, 40), chance.integers(0, 5, 40)
    total = int(weights.sum())
    for target in (1, max(1, total // 2), max(1, total), total + 1):
        reaching = [
            int(key) for key in keys if weights[keys >= key].sum() >= target and weights[keys == key].sum()
        ]
        found = threshold(
            torch.from_numpy(keys.astype(np.int32))[None],
            torch.from_numpy(weights)[None],
            torch.tensor([target]),
        )
        if total >= target:
            assert int(found[0]) == max(reaching)
        else:
            assert int(found[0]) <= keys[weights > 0].min(initial=high)
