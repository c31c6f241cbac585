# SPDX-License-Identifier: MIT
"""Qwen3-MoE (30B-A3B, 235B-A22B, Coder-480B): Qwen3's attention, softmax-routed experts, no shared expert.

Layers listed in `mlp_only_layers`, and those that `decoder_sparse_step` passes over, are dense. Checked
against Qwen3MoeForCausalLM of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenspeed.layers.attention import GQAttention
from tokenspeed.layers.layer import Build, Module
from tokenspeed.layers.mlp import gated_mlp
from tokenspeed.layers.moe import MoEShape, mixture
from tokenspeed.layers.rope import Rotary, parse_rope
from tokenspeed.models.fields import Fields
from tokenspeed.models.llama import NAMES, TIED_NAMES, parse_attention, parse_trunk
from tokenspeed.models.model import Family


def family(config: Mapping[str, Any], build: Build, context_tokens: int | None) -> Family:
    """Describe the model of `config`."""
    fields = Fields(config)
    trunk = parse_trunk(fields, context_tokens)
    attention = parse_attention(fields)
    rotary = Rotary(parse_rope(config, attention.head_dim), trunk.context_tokens)
    shape = MoEShape(
        width=trunk.width,
        experts=fields.count("num_experts", also="num_local_experts"),
        top_k=fields.count("num_experts_per_tok"),
        ffn=fields.count("moe_intermediate_size"),
        normalise=fields.flag("norm_topk_prob", False),
    )
    dense = {int(index) for index in fields.values.get("mlp_only_layers") or ()}
    every = fields.count("decoder_sparse_step", 1)

    def feed_forward(index: int) -> Module:
        name = f"model.layers.{index}.mlp"
        if index in dense or (index + 1) % every:
            return gated_mlp(build, name, trunk.width, fields.count("intermediate_size"))
        return mixture(build, name, shape)

    blocks = [
        (
            GQAttention(build, f"model.layers.{index}.self_attn", index, attention, rotary),
            feed_forward(index),
        )
        for index in range(trunk.layers)
    ]
    return Family(trunk, rotary, blocks, TIED_NAMES if trunk.tied else NAMES)
