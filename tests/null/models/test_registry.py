# SPDX-License-Identifier: MIT
"""What a config says becomes facts; what it says wrong is a SetupError that names the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenspeed import models
from tokenspeed.base.errors import SetupError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
    "eos_token_id": 7,
}


def facts(**changes: Any) -> models.Facts:
    return models.build({**LLAMA, **changes}).facts


def test_facts_state_sizes_dtype_and_ends() -> None:
    found = facts()
    assert (found.architecture, found.layers, found.width, found.vocab) == ("LlamaForCausalLM", 2, 64, 160)
    assert (found.context_tokens, found.eos_ids, found.dtype) == (256, (7,), torch.bfloat16)
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    per_layer = 64 * 128 + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert found.parameter_bytes == 2 * (2 * 160 * 64 + 2 * per_layer + 64)


def test_tied_heads_are_counted_once() -> None:
    assert facts().parameter_bytes - facts(tie_word_embeddings=True).parameter_bytes == 2 * 160 * 64


def test_ends_come_from_generation_config_where_it_has_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert models.build(models.read_config(tmp_path)).facts.eos_ids == (7,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 9]}))
    assert models.build(models.read_config(tmp_path)).facts.eos_ids == (3, 9)


def test_dtype_may_be_overridden() -> None:
    assert models.build(LLAMA, dtype="float32").dtype is torch.float32
    assert models.build({**LLAMA, "torch_dtype": None}).dtype is torch.bfloat16


def test_context_may_be_shortened_and_not_lengthened() -> None:
    assert models.build(LLAMA, context_tokens=100).facts.context_tokens == 100
    with pytest.raises(SetupError, match="300 tokens is longer than the model's 256"):
        models.build(LLAMA, context_tokens=300)


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "linear", "factor": 2.0}, 256),
    ],
)
def test_rope_scaling_stretches_the_context_where_the_config_has_not(rope: Any, tokens: int) -> None:
    assert facts(rope_scaling=rope).context_tokens == tokens


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel is not supported; supported: Llama",
        ),
        ({"architectures": []}, "names no architecture"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be at least 1"),
        ({"rope_theta": "x"}, "rope_theta is 'x'; it must be a number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "factor is 'x'; it must be a number"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be an object"),
        ({"vocab_size": "many"}, "vocab_size is 'many'; it must be a whole number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu"),
        ({"use_sliding_window": True}, "sliding-window attention is not supported"),
        ({"torch_dtype": "int4"}, "dtype int4 is not supported"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"num_attention_heads": 5, "num_key_value_heads": 3, "head_dim": 16}, "not a multiple"),
    ],
)
def test_faults_of_a_config_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        models.build({**LLAMA, **changes})


def test_unknown_load_options_and_routings_are_refused() -> None:
    with pytest.raises(SetupError, match="quantization 'int3' is not a load option"):
        models.build(LLAMA, quantization="int3")


def test_directories_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"has no config\.json"):
        models.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SetupError, match="is not JSON"):
        models.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SetupError, match="holds no JSON object"):
        models.read_config(tmp_path)
