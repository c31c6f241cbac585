# SPDX-License-Identifier: MIT
"""DeepSeek V2, V2-Lite, V3, R1; Moonlight; Kimi K2 and the text model of K2.5.

Latent attention and many small experts. What varies, all from the config: queries through a latent or direct
(`q_lora_rank`); the first layers dense; routing

    V2   softmax scores, greedy or limited to the groups with the best expert; weights scaled or normalised
    V3   sigmoid scores, a bias that helps to be chosen, groups by their two best; normalised, then scaled

Multi-token-prediction layers of a checkpoint (`num_nextn_predict_layers`) are knowingly left unread. Sources:
arXiv 2405.04434, 2412.19437, and the modelling code published with the checkpoints where transformers differs
from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenspeed.base.errors import SetupError
from tokenspeed.layers.layer import Build, Module
from tokenspeed.layers.mla import MLAShape, MLAttention
from tokenspeed.layers.mlp import gated_mlp
from tokenspeed.layers.moe import MoEShape, mixture
from tokenspeed.layers.rope import Rotary, parse_rope
from tokenspeed.models.fields import Fields
from tokenspeed.models.llama import NAMES, TIED_NAMES, parse_trunk
from tokenspeed.models.model import Family
from tokenspeed.weights.names import NameRules


def family(config: Mapping[str, Any], build: Build, context_tokens: int | None) -> Family:
    """Describe the model of `config`."""
    fields = Fields(config)
    trunk = parse_trunk(fields, context_tokens)
    attention = _attention(fields)
    rotary = Rotary(parse_rope(config, attention.rope), trunk.context_tokens)
    shape = _mixture(fields, is_v2=fields.is_a("deepseekv2"))
    dense_layers = fields.count("first_k_dense_replace", 0)
    every = fields.count("moe_layer_freq", 1)

    def feed_forward(index: int) -> Module:
        name = f"model.layers.{index}.mlp"
        if index < dense_layers or index % every:
            return gated_mlp(build, name, trunk.width, fields.count("intermediate_size"))
        return mixture(build, name, shape)

    blocks = [
        (
            MLAttention(build, f"model.layers.{index}.self_attn", index, attention, rotary),
            feed_forward(index),
        )
        for index in range(trunk.layers)
    ]
    return Family(trunk, rotary, blocks, _names(fields, trunk.layers, tied=trunk.tied))


def family_of_text(config: Mapping[str, Any], build: Build, context_tokens: int | None) -> Family:
    """Describe the text model of a Kimi K2.5 config: `text_config`, its weights under `language_model.`."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise SetupError("config.json has no text_config; a Kimi K2.5 model does")
    inner = family(text, build, context_tokens)
    prefixed = tuple(rf"language_model\.{pattern}" for pattern in inner.names.skip)
    names = NameRules("language_model.", (*prefixed, r"vision_tower\.", r"mm_projector\."))
    return replace(inner, names=names)


def _attention(fields: Fields) -> MLAShape:
    return MLAShape(
        width=fields.count("hidden_size"),
        heads=fields.count("num_attention_heads"),
        q_latent=fields.count("q_lora_rank", 0),
        latent=fields.count("kv_lora_rank"),
        nope=fields.count("qk_nope_head_dim"),
        rope=fields.count("qk_rope_head_dim"),
        value=fields.count("v_head_dim"),
        bias=fields.flag("attention_bias", False),
        interleaved=fields.flag("rope_interleave", True),
    )


def _mixture(fields: Fields, *, is_v2: bool) -> MoEShape:
    methods = ("greedy", "group_limited_greedy", "noaux_tc")
    method = fields.word("topk_method", "greedy" if is_v2 else "noaux_tc", methods)
    limited = method != "greedy"
    groups = (fields.count("n_group", 0) or 1) if limited else 1
    top_k, scale = fields.count("num_experts_per_tok"), fields.number("routed_scaling_factor", 1.0)
    normalise = fields.flag("norm_topk_prob", not is_v2) and top_k > 1
    return MoEShape(
        width=fields.count("hidden_size"),
        experts=fields.count("n_routed_experts", also="num_local_experts"),
        top_k=top_k,
        ffn=fields.count("moe_intermediate_size"),
        shared_ffn=fields.count("n_shared_experts", 0) * fields.count("moe_intermediate_size"),
        groups=groups,
        groups_top=(fields.count("topk_group", 0) or groups) if limited else 1,
        scoring=fields.word("scoring_func", "softmax" if is_v2 else "sigmoid", ("softmax", "sigmoid")),
        group_score="top2_sum" if method == "noaux_tc" else "max",
        normalise=normalise,
        # V2's published code scales the weights only where it does not normalise them.
        scale=1.0 if is_v2 and normalise else scale,
        biased=method == "noaux_tc",
    )


def _names(fields: Fields, layers: int, *, tied: bool) -> NameRules:
    base = TIED_NAMES if tied else NAMES
    ahead = range(layers, layers + fields.count("num_nextn_predict_layers", 0, also="num_mtp_layers"))
    return NameRules(skip=(*base.skip, *(rf"model\.layers\.{index}\." for index in ahead)))
