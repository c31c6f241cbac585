# SPDX-License-Identifier: MIT
"""Llama 3.x, Qwen2, Qwen2.5 and dense Qwen3: grouped-query attention and a gated feed-forward block.

They differ in three fields: Qwen2 has biases on q, k and v; Qwen3 normalises each head of q and k, and states
its head size; Llama takes both biases from its config. Checked against the model classes of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenspeed.base.errors import SetupError
from tokenspeed.layers.attention import GQAShape, GQAttention
from tokenspeed.layers.layer import Build
from tokenspeed.layers.mlp import gated_mlp
from tokenspeed.layers.rope import Rotary, parse_rope
from tokenspeed.models.fields import Fields
from tokenspeed.models.model import Family, Trunk
from tokenspeed.weights.names import NameRules

NAMES = NameRules(skip=(r".*\.rotary_emb\.inv_freq$",))
TIED_NAMES = NameRules(skip=(*NAMES.skip, r"lm_head\.weight$"))


def family(config: Mapping[str, Any], build: Build, context_tokens: int | None) -> Family:
    """Describe the model of `config`."""
    fields = Fields(config)
    trunk = parse_trunk(fields, context_tokens)
    shape = parse_attention(fields)
    rotary = Rotary(parse_rope(config, shape.head_dim), trunk.context_tokens)
    ffn, bias = fields.count("intermediate_size"), fields.flag("mlp_bias", False)
    blocks = [
        (
            GQAttention(build, f"model.layers.{index}.self_attn", index, shape, rotary),
            gated_mlp(build, f"model.layers.{index}.mlp", trunk.width, ffn, bias=bias),
        )
        for index in range(trunk.layers)
    ]
    return Family(trunk, rotary, blocks, TIED_NAMES if trunk.tied else NAMES)


def parse_trunk(fields: Fields, context_tokens: int | None) -> Trunk:
    """The sizes all families share. Raises SetupError for other activations and sliding windows."""
    fields.word("hidden_act", "silu", ("silu",))
    fields.must_be_off("use_sliding_window", "sliding-window attention is not supported")
    own = model_context_tokens(fields)
    if context_tokens is not None and context_tokens > own:
        raise SetupError(
            f"a context of {context_tokens} tokens is longer than the model's {own}; ask for at most {own}"
        )
    return Trunk(
        layers=fields.count("num_hidden_layers"),
        width=fields.count("hidden_size"),
        vocab=fields.count("vocab_size"),
        eps=fields.number("rms_norm_eps", 1e-6),
        tied=fields.flag("tie_word_embeddings", False),
        context_tokens=context_tokens or own,
    )


def model_context_tokens(fields: Fields) -> int:
    """The longest context the config promises, by its own word or by how far its rope stretches."""
    own = fields.count("max_position_embeddings")
    rope = fields.section("rope_parameters", "rope_scaling")
    kind, factor = rope.values.get("rope_type") or rope.values.get("type"), rope.number("factor", 1)
    if kind == "dynamic":
        return int(own * factor)
    if kind == "yarn":
        return max(own, int(rope.count("original_max_position_embeddings", 0) * factor))
    return own


def parse_attention(fields: Fields) -> GQAShape:
    """The attention of Llama, Qwen2 and Qwen3 (dense and mixture)."""
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    qwen2, qwen3 = fields.is_a("qwen2"), fields.is_a("qwen3")
    bias = fields.flag("attention_bias", qwen2)
    return GQAShape(
        width=width,
        heads=heads,
        kv_heads=fields.count("num_key_value_heads", heads),
        head_dim=fields.count("head_dim", 128 if qwen3 else width // heads),
        bias=bias,
        out_bias=bias and not qwen2,
        qk_norm_eps=fields.number("rms_norm_eps", 1e-6) if qwen3 else None,
    )
