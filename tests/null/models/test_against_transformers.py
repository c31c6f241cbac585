# SPDX-License-Identifier: MIT
"""Every family computes what transformers computes, through the paged path, however the work is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tokenspeed import kernels

STEPS = 64
TOLERANCE = 2e-5
"""Of the largest logit; the bar is 1e-4, the largest error seen 3e-6."""


@pytest.fixture(params=["chosen", "ref"], autouse=True)
def kernels_used(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test twice: with the kernels that selection chooses here, and with the references."""
    with kernels.overriding(*(["*=ref"] if request.param == "ref" else [])):
        yield


def prompt(seed: int, tokens: int) -> list[int]:
    return torch.randint(3, 160, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def check(logits: torch.Tensor, want: torch.Tensor) -> None:
    """Logits in fp32 equal the reference's, relative to its largest where that is above one."""
    assert (logits - want).abs().max() <= TOLERANCE * max(1.0, float(want.abs().max()))


def test_prefill_logits_of_every_token_equal(case: str, twin: Any, paged: Any) -> None:
    driver = paged(twin(case).ours())
    tokens = prompt(1, 50)
    (logits,) = driver.step([(driver.row(tokens), 50)], sampled="all")
    check(logits, twin(case).logits(tokens))


def test_greedy_tokens_equal_over_64_steps_however_the_work_is_cut(case: str, twin: Any, paged: Any) -> None:
    """Whole, chunked, on a shared prefix, and in a mixed batch: one reference, teacher-forced at the end."""
    driver = paged(twin(case).ours())
    tokens = prompt(2, 37)
    whole = driver.row(tokens)
    logits = driver.greedy(whole, STEPS)
    want = twin(case).logits(whole.tokens[:-1])[len(tokens) - 1 :]
    assert want.argmax(-1).tolist() == whole.tokens[len(tokens) :]
    check(logits, want)

    chunked = driver.row(tokens)
    check(driver.greedy(chunked, STEPS, chunk=5), want)
    assert chunked.tokens == whole.tokens

    warm = driver.row(tokens, shared=whole, shared_tokens=32)
    check(driver.greedy(warm, STEPS), want)
    assert warm.tokens == whole.tokens


def test_batched_rows_equal_rows_alone(case: str, twin: Any, paged: Any) -> None:
    """Three prompts join one after another, so that steps mix decode rows, whole prefills and chunks."""
    driver = paged(twin(case).ours())
    prompts = [prompt(3, 21), prompt(4, 33), prompt(5, 1)]
    rows = [driver.row(tokens) for tokens in prompts]
    for step in range(24):
        batch = [(row, min(8, len(row.tokens) - row.done)) for row in rows[: 1 + step // 2]]
        for (row, _), logits in zip(batch, driver.step(batch), strict=True):
            if row.done == len(row.tokens):
                row.tokens.append(int(logits[-1].argmax()))
    for tokens, row in zip(prompts, rows, strict=True):
        produced = len(row.tokens) - len(tokens)
        assert produced >= 15
        want = twin(case).logits(row.tokens[:-1])[len(tokens) - 1 :]
        assert want.argmax(-1).tolist() == row.tokens[len(tokens) :]


def test_chunks_that_sample_nothing_only_write(case: str, twin: Any, paged: Any) -> None:
    driver = paged(twin(case).ours())
    tokens = prompt(7, 40)
    row = driver.row(tokens)
    for _ in range(3):
        (logits,) = driver.step([(row, 13)], sampled="none")
        assert logits.shape == (0, 160)
    (logits,) = driver.step([(row, 1)])
    check(logits, twin(case).logits(tokens)[-1:])
