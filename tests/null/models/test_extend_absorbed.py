# SPDX-License-Identifier: MIT
"""Rows that extend in the latent space compute what transformers computes, alone and beside others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenspeed.layers.mla import MLAttend

TOKENS = torch.randint(3, 160, (40,), generator=torch.Generator().manual_seed(8)).tolist()


@pytest.fixture(autouse=True)
def always_absorbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every layer extend in the latent space, which by itself only GPUs with a tuned decode do."""
    bind = MLAttend._bind

    def bind_and_absorb(layer: MLAttend) -> None:
        bind(layer)
        layer._may_absorb = True

    monkeypatch.setattr(MLAttend, "_bind", bind_and_absorb)
    monkeypatch.setattr("tokenspeed.layers.mla.extends_absorbed", lambda *_: True)


@pytest.mark.parametrize("case", ["moonlight", "deepseek-v3-halves"])
def test_chunks_and_decoding_rows_together_equal_one_pass(case: str, twin: Any, paged: Any) -> None:
    driver = paged(twin(case).ours())
    want = twin(case).logits(TOKENS)
    alone, beside = driver.row(TOKENS), driver.row(TOKENS)
    (first,) = driver.step([(alone, 25)], sampled="all")
    decoded, extended = driver.step([(alone, 1), (beside, 13)], sampled="all")
    both = driver.step([(alone, 5), (beside, 27)], sampled="all")
    torch.testing.assert_close(torch.cat((first, decoded, both[0])), want[:31], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat((extended, both[1])), want, atol=1e-4, rtol=1e-4)
