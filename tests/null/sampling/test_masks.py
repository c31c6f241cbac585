# SPDX-License-Identifier: MIT
"""Masked rows of a step choose within their masks, whatever else they ask for; other rows choose as ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tests.null.sampling.test_sampler import KINDS, VOCAB, ids, logits
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.kernels import bind, describe
from tokenspeed.sampling import Report, Rows, Sampler

WORDS = -(-VOCAB // 32)


@dataclass(frozen=True)
class Masks:
    rows: np.ndarray
    bits: np.ndarray


def masks(**allowed: list[int]) -> Masks:
    """The tokens that rows may say, by `row_N`."""
    rows = sorted(int(name[4:]) for name in allowed)
    flags = np.zeros((len(rows), WORDS * 32), np.uint8)
    for line, row in enumerate(rows):
        flags[line, allowed[f"row_{row}"]] = 1
    bits = np.packbits(flags, axis=1, bitorder="little").view(np.int32)
    return Masks(np.array(rows, np.int64), bits)


def step(
    kinds: list[dict[str, Any]], table: torch.Tensor, given: Masks | None
) -> tuple[list[int], list[int], Report | None]:
    """Chosen tokens, last tokens by slot, and the report."""
    sampler = Sampler(slots=len(kinds), vocab=VOCAB, device="cpu")
    for slot, kind in enumerate(kinds):
        sampler.bind(slot, SamplingParams(seed=slot, **kind), ids(5, 6, 7), ids(9))
    slots = np.arange(len(kinds), dtype=np.int32)
    rows = Rows(torch.from_numpy(slots.astype(np.int64)), torch.full((len(kinds),), 4), slots)
    last, chosen = torch.zeros(len(kinds) + 1, dtype=torch.int64), torch.zeros(len(kinds), dtype=torch.int32)
    bind("step.greedy", describe(torch.device("cpu")), dtype=torch.float32, vocab=VOCAB)(
        table, rows.slots, last, chosen
    )
    report = sampler.refine(table, chosen, last, rows, given)
    return chosen.tolist(), last[:-1].tolist(), report


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_row_chooses_within_its_mask(kind: dict[str, Any]) -> None:
    table = logits(1, rows=3)
    chosen, last, _ = step([kind] * 3, table, masks(row_1=[3, 44, VOCAB - 1]))
    free, _, _ = step([kind] * 3, table, None)
    assert chosen[1] in (3, 44, VOCAB - 1)
    assert last[1] == chosen[1]
    assert [chosen[0], chosen[2]] == [free[0], free[2]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_everything_changes_nothing(kind: dict[str, Any]) -> None:
    table = logits(2, rows=2)
    everything = list(range(VOCAB))
    assert (
        step([kind] * 2, table, masks(row_0=everything, row_1=everything))[:2]
        == step([kind] * 2, table, None)[:2]
    )


def test_log_probabilities_are_the_models_own() -> None:
    table = logits(3)
    kind = {"temperature": 0.0, "logprobs": 2}
    chosen, _, report = step([kind], table, masks(row_0=[7]))
    assert chosen == [7]
    assert report is not None
    (entry,) = report.read()
    assert entry is not None
    assert entry.logprob == pytest.approx(float(table[0].log_softmax(-1)[7]), abs=1e-5)


def test_a_row_at_fault_stays_so_under_a_mask() -> None:
    table = logits(4, rows=2)
    table[0, 5], table[1, 6] = torch.nan, torch.inf
    chosen, last, _ = step([{"temperature": 0.0}] * 2, table, masks(row_0=[1], row_1=[1]))
    assert (chosen, last) == ([-1, -1], [0, 0])
