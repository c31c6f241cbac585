# SPDX-License-Identifier: MIT
"""Angle tables equal those of transformers for every rope type, from configs of either spelling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tokenspeed.base.errors import SetupError
from tokenspeed.layers.rope import angles, parse_rope

BASE = {"max_position_embeddings": 512, "rope_theta": 10000.0}
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-mscale": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 128,
        "mscale": 0.8,
        "mscale_all_dim": 1.1,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn-kimi": {
        "type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 128,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
    },
    "yarn-fractional": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "truncate": False,
        "attention_factor": 1.3,
    },
}


def reference(section: dict[str, Any], positions: int, head_dim: int = 64) -> torch.Tensor:
    config = LlamaConfig(
        hidden_size=head_dim * 2, num_attention_heads=2, head_dim=head_dim, rope_scaling=dict(section), **BASE
    )
    kind = section.get("rope_type") or section["type"]
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=positions)
    turns = torch.arange(positions, dtype=torch.float32).unsqueeze(1) * frequencies
    return torch.cat((turns.cos(), turns.sin()), 1) * factor


@pytest.mark.parametrize("name", SCALED)
def test_angles_equal_transformers(name: str) -> None:
    config = parse_rope({**BASE, "rope_scaling": SCALED[name]}, 64)
    torch.testing.assert_close(angles(config, 512), reference(SCALED[name], 512), atol=2e-5, rtol=0)


def test_new_spelling_reads_the_same() -> None:
    old = parse_rope({**BASE, "rope_scaling": SCALED["llama3"]}, 64)
    new = parse_rope(
        {"max_position_embeddings": 512, "rope_parameters": {**SCALED["llama3"], "rope_theta": 10000.0}}, 64
    )
    assert old == new


def test_default_when_nothing_is_said() -> None:
    config = parse_rope({"max_position_embeddings": 32, "rope_scaling": None}, 8)
    assert (config.kind, config.theta, config.softmax_factor) == ("default", 10000.0, 1.0)
    assert torch.equal(angles(config, 1), torch.tensor([[1.0] * 4 + [0.0] * 4]))


def test_dynamic_past_the_trained_context_takes_the_theta_of_the_context_that_ends_there() -> None:
    config = parse_rope({**BASE, "rope_scaling": SCALED["dynamic"]}, 64)
    table = angles(config, 1024)
    for position in (600, 1023):
        want = reference(SCALED["dynamic"], position + 1)[position]
        torch.testing.assert_close(table[position], want, atol=2e-4, rtol=0)


def test_softmax_factor_is_mscale_squared() -> None:
    config = parse_rope({**BASE, "rope_scaling": SCALED["yarn-mscale"]}, 64)
    assert config.softmax_factor == pytest.approx((0.1 * 1.1 * torch.tensor(40.0).log().item() + 1) ** 2)


def test_partial_rotary_turns_the_first_dimensions() -> None:
    config = parse_rope({**BASE, "partial_rotary_factor": 0.5}, 64)
    assert angles(config, 3).shape == (3, 32)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope' is not supported; supported: default, linear"),
        ({"rope_type": "llama3"}, "'llama3' needs a factor"),
    ],
)
def test_unsupported_ropes_are_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        parse_rope({**BASE, "rope_scaling": section}, 64)
