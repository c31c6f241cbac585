# SPDX-License-Identifier: MIT
"""Configs of published models: supported ones build at their true shapes, and run at shapes cut to memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenspeed import models, weights
from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh

CONFIGS = Path(__file__).parents[4] / "shared" / "data" / "model-configs"
PATHS = sorted(CONFIGS.glob("*_config.json"))
PUBLISHED_B = {
    "Qwen--Qwen3-0.6B": 0.596,
    "Qwen--Qwen3-8B": 8.19,
    "Qwen--Qwen3-30B-A3B": 30.5,
    "Qwen--Qwen3-235B-A22B": 235.1,
    "meta-llama--Meta-Llama-3.1-8B": 8.03,
    "meta-llama--Meta-Llama-3.1-70B": 70.6,
    "deepseek-ai--DeepSeek-V3": 671.0,
    "moonshotai--Kimi-K2-Instruct": 1026.0,
}
"""Billions of parameters as the model cards say."""

pytestmark = pytest.mark.skipif(not PATHS, reason="the published configs are not beside this checkout")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def supported(path: Path) -> bool:
    return any(name in models.ARCHITECTURES for name in read(path).get("architectures") or ())


SUPPORTED = [path for path in PATHS if supported(path)]


def name_of(path: Path) -> str:
    return path.name.removesuffix("_config.json")


def two_layers(config: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """The config with two layers, the second of them sparse where the model is."""
    section = config.get("text_config") or config
    section["num_hidden_layers"] = 2
    if "first_k_dense_replace" in section:
        section["first_k_dense_replace"] = 1
    section.update({name: value for name, value in overrides.items() if name in section})
    return config


@pytest.mark.parametrize("path", SUPPORTED, ids=name_of)
@pytest.mark.parametrize("tp", [1, 8])
def test_true_shapes_build_at_two_layers_without_memory(path: Path, tp: int) -> None:
    config = two_layers(read(path))
    text = config.get("text_config") or config
    model = models.build(config, mesh=Mesh(tp=tp))
    assert (model.facts.layers, len(model.kv_spec)) == (2, 2)
    assert model.facts.context_tokens == text["max_position_embeddings"]
    assert model.facts.eos_ids
    assert bool(model.program.collectives) == (tp > 1)
    shapes = {p.name: p.shape for layer in model.loadables() for p in layer.parameters}
    assert shapes["model.embed_tokens.weight"] == (text["vocab_size"] // tp, text["hidden_size"])
    if "n_routed_experts" in text:
        width, ffn = text["hidden_size"], text["moe_intermediate_size"] // tp
        assert shapes["model.layers.1.mlp.experts.gate_up_proj"] == (text["n_routed_experts"], 2 * ffn, width)
        assert model.kv_spec[0] == models.MLA(512, 64)


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in SUPPORTED if name_of(p) in PUBLISHED_B], ids=name_of)
def test_whole_models_have_as_many_parameters_as_published(path: Path) -> None:
    model = models.build(read(path), dtype="bfloat16")
    counted = sum(p.elements for layer in model.loadables() for p in layer.parameters) / 1e9
    assert counted == pytest.approx(PUBLISHED_B[name_of(path)], rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("path", SUPPORTED, ids=name_of)
def test_true_attention_runs_with_vocabulary_and_feed_forward_cut(path: Path, paged: Any) -> None:
    """Two layers with dummy weights: heads, latents, ropes and top-k as published; V, F and E are cut."""
    config = two_layers(
        read(path),
        vocab_size=512,
        intermediate_size=512,
        moe_intermediate_size=64,
        n_routed_experts=16,
        num_experts=16,
    )
    model = models.build(config, block_tokens=16, context_tokens=64)
    loaded = weights.load_dummy(model)
    assert loaded.parameter_bytes == model.facts.parameter_bytes
    driver = paged(model, blocks=8)
    row = driver.row(torch.randint(0, 512, (20,), generator=torch.Generator().manual_seed(0)).tolist())
    logits = driver.greedy(row, 4)
    assert logits.shape == (4, 512)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())
    assert 0.05 < float(logits.std()) / (0.02 * math.sqrt(model.facts.width)) < 20


@pytest.mark.parametrize("path", [p for p in PATHS if not supported(p)], ids=name_of)
def test_other_architectures_are_refused_with_the_list_of_supported_ones(path: Path) -> None:
    with pytest.raises(SetupError, match=r"is not supported; supported: LlamaForCausalLM, .*Kimi"):
        models.build(read(path))
