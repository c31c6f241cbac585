# SPDX-License-Identifier: MIT
"""A model of two layers and a checkpoint that fits it, written tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenspeed import models
from tokenspeed.models import Model

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 160,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "q_lora_rank": 144,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 136,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "float32",
}


def build(**options: Any) -> Model:
    return models.build({**CONFIG, **options.pop("config", {})}, **options)


def fitting(model: Model) -> dict[str, torch.Tensor]:
    """Random tensors of every name and shape the model reads."""
    generator = torch.Generator().manual_seed(5)
    return {
        model.names.source(fill.source): torch.randn(fill.shape, generator=generator) * 0.1
        for layer in model.loadables()
        for parameter in layer.parameters
        for fill in parameter.fills
    }


def write(directory: Path, tensors: dict[str, torch.Tensor], files: int = 3) -> Path:
    """Write a sharded checkpoint with its index."""
    directory.mkdir(exist_ok=True)
    names = sorted(tensors)
    where: dict[str, str] = {}
    for index in range(files):
        mine = names[index::files]
        name = f"model-{index + 1:05d}-of-{files:05d}.safetensors"
        save_file({n: tensors[n].contiguous() for n in mine}, directory / name)
        where.update(dict.fromkeys(mine, name))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return directory


class Recorder:
    """What a model's layers were given, by parameter name."""

    def __init__(self, model: Model) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        for layer in model.loadables():
            self._wrap(layer)

    def _wrap(self, layer: Any) -> None:
        install = layer.install

        def recording(tensors: list[torch.Tensor]) -> None:
            names = [parameter.name for parameter in layer.parameters]
            self.tensors.update({n: t.clone() for n, t in zip(names, tensors, strict=True)})
            install(tensors)

        layer.install = recording


@pytest.fixture
def built() -> Callable[..., Model]:
    return build


@pytest.fixture
def fit() -> Callable[[Model], dict[str, torch.Tensor]]:
    return fitting


@pytest.fixture
def written() -> Callable[..., Path]:
    return write


@pytest.fixture
def recorded() -> type[Recorder]:
    return Recorder
