# SPDX-License-Identifier: MIT
"""The same model in other clothes: bf16, int8, and the prefixed checkpoint of Kimi K2.5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenspeed import models, weights

TOKENS = torch.randint(3, 160, (40,), generator=torch.Generator().manual_seed(6)).tolist()


def all_logits(model: models.Model, paged: Any) -> torch.Tensor:
    driver = paged(model)
    row = driver.row(TOKENS)
    first = driver.step([(row, 32)], sampled="all")[0]
    rest = [driver.step([(row, 1)])[0] for _ in range(8)]
    return torch.cat((first, *rest))


def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(case: str, twin: Any, paged: Any) -> None:
    """Both against float32 transformers: our mean error is at most 1.25 times theirs, plus 0.01.

    The mean and not the largest: one expert chosen differently by a rounding moves a whole row, in both.
    """
    want = twin(case).logits(TOKENS)
    ours = (all_logits(twin(case).ours(torch.bfloat16), paged) - want).abs().mean()
    half = type(twin(case).hf).from_pretrained(twin(case).directory, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        theirs = (half(torch.tensor([TOKENS])).logits[0].float() - want).abs().mean()
    assert ours <= 1.25 * theirs + 0.01
    assert ours <= 0.1 * want.std()


@pytest.mark.parametrize("case", ["llama", "qwen3-moe", "moonlight"])
def test_context_in_8_bits_stays_close(case: str, twin: Any, paged: Any) -> None:
    """Prefill and decode agree with the context in the model's dtype within what three bits of fraction cost."""
    model = twin(case).ours(kv_format="fp8")
    native = twin(case).ours()
    assert model.facts.kv_bytes_per_token < native.facts.kv_bytes_per_token
    want, got = all_logits(native, paged), all_logits(model, paged)
    error = (got - want).abs().mean()
    assert 0 < error < 0.12 * want.std()
    again = paged(model)
    row = again.row(TOKENS)  # in pieces as whole: what is read back is what was written
    pieces = [again.step([(row, count)], sampled="all")[0] for count in (13, 19, 1, 7)]
    assert torch.allclose(torch.cat(pieces)[-7:], got[-7:], atol=0.05 * float(want.std()))


@pytest.mark.parametrize("case", ["llama", "qwen3-moe", "moonlight"])
def test_int8_weights_stay_close(case: str, twin: Any, paged: Any) -> None:
    want = all_logits(twin(case).ours(), paged)
    got = all_logits(twin(case).ours(quantization="int8"), paged)
    error = (got - want).abs().mean()
    assert 0 < error < 0.1 * want.std()


def test_text_model_of_a_kimi_k25_checkpoint(twin: Any, paged: Any, tmp_path: Path) -> None:
    """A nested config, weights under `language_model.`, the vision tower left unread and listed."""
    source = twin("moonlight")
    tensors = {
        f"language_model.{name}": tensor
        for file in source.directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    save_file(tensors | {"vision_tower.patch.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    text = json.loads((source.directory / "config.json").read_text())
    config = {"architectures": ["KimiK25ForConditionalGeneration"], "text_config": text, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = models.build(models.read_config(tmp_path), dtype="float32", block_tokens=16)
    assert weights.load(model, tmp_path).skipped == ("vision_tower.patch.weight",)
    torch.testing.assert_close(all_logits(model, paged), source.logits(TOKENS), atol=1e-4, rtol=1e-4)
