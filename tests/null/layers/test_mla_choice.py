# SPDX-License-Identifier: MIT
"""Extending rows of latent attention take the way that is less work for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tokenspeed.layers.mla import MLAShape, extends_absorbed

TOKENS_MAX = 256
SHAPE = MLAShape(width=2048, heads=16, q_latent=0, latent=512, nope=128, rope=64, value=128)


def absorbed(*rows: tuple[int, int], shape: MLAShape = SHAPE) -> bool:
    lengths, contexts = np.array(rows, dtype=np.int32).T
    return extends_absorbed(lengths, contexts, shape, TOKENS_MAX)


@pytest.mark.parametrize("context", [4_096, 32_768, 102_400])
def test_few_tokens_over_a_long_context_stay_in_the_latent_space_and_many_do_not(context: int) -> None:
    assert absorbed((2, context))
    assert absorbed((64, context))
    assert not absorbed((512, context))


@pytest.mark.parametrize("context", [512, 8_192, 65_536])
def test_more_new_tokens_never_lead_back_to_the_latent_space(context: int) -> None:
    answers = [absorbed((new, context)) for new in range(1, TOKENS_MAX + 2)]
    assert answers == sorted(answers, reverse=True)


def test_nothing_is_absorbed_where_no_token_may_be() -> None:
    assert not extends_absorbed(np.array([1]), np.array([100_000]), SHAPE, 0)


def test_a_prompt_without_a_prefix_is_raised() -> None:
    assert not absorbed((8_192, 8_192))
    assert not absorbed((TOKENS_MAX + 1, 100_000))


def test_one_long_row_raises_all_of_the_step() -> None:
    assert absorbed((16, 50_000), (16, 50_000))
    assert not absorbed((16, 50_000), (8_192, 50_000))


def test_the_number_of_heads_does_not_matter() -> None:
    more = dataclasses.replace(SHAPE, heads=128)
    for new in range(1, 300, 7):
        assert absorbed((new, 20_000)) == absorbed((new, 20_000), shape=more)
