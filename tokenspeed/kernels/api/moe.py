# SPDX-License-Identifier: MIT
"""Ops `moe.gate`, `moe.norm_gate`, `moe.route` and `moe.experts`: choose experts for each token, run them, sum.

The gate is float32 from products to weights; `moe.route` is its second half. No token is dropped. Experts that
every token shares are part of `moe.experts`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tokenspeed.kernels.api.traits import (
    BF16,
    DTYPE,
    FORMAT,
    FP32,
    ROUNDED,
    SUMMED,
    WIDTH,
    count,
    dtype_of,
    whole,
)
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.ref import moe as ref
from tokenspeed.kernels.ref.dense import FP8_BLOCK, quantise_fp8_block
from tokenspeed.kernels.spec import Cost, Inputs, Op, Plain, Point, Sizes, Trait, Traits


def route_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    experts = whole(traits, "experts")
    biased = traits["scoring"] == "sigmoid"
    args: dict[str, Any] = {
        "logits": draw.normal(sizes.tokens, experts, dtype=FP32),
        "bias": draw.normal(experts, dtype=FP32, scale=0.1) if biased else None,
    }
    options = {name: traits[name] for name in ("top_k", "groups", "groups_top", "scoring", "group_score")}
    return Inputs(args={**args, **options, "normalise": biased, "scale": 2.5 if biased else 1.0})


def gate_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    """A gate has numbers of the activations' dtype, as from a checkpoint of that dtype."""
    experts, width, dtype = whole(traits, "experts"), whole(traits, "width"), traits["x_dtype"]
    assert isinstance(dtype, torch.dtype)
    routed = route_inputs(traits, sizes, draw)
    place = torch.arange(sizes.tokens, device=draw.device)
    place[1::3] = -1
    args = {"x": draw.normal(sizes.tokens, width, dtype=dtype), **routed.args, "write_index": place}
    del args["logits"]
    gate = draw.normal(experts, width, dtype=dtype, scale=width**-0.5).to(FP32)
    return Inputs(args=args, weights=(gate,), weights_as=("w",))


def norm_gate_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    """The bias alone chooses experts: what is normalised may be rounded before it is multiplied."""
    gated, experts, width = gate_inputs(traits, sizes, draw), whole(traits, "experts"), whole(traits, "width")
    dtype = traits["x_dtype"]
    assert isinstance(dtype, torch.dtype)
    args = {
        **gated.args,
        "bias": draw.normal(experts, dtype=FP32, scale=1e4),
        "residual": draw.normal(sizes.tokens, width, dtype=dtype, scale=3.0),
        "norm_weight": draw.normal(width, dtype=dtype, scale=0.5),
        "eps": 1e-6,
    }
    return replace(gated, args=args, scratch=("residual",))


def norm_gate_canonical(outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Order the choices; hold what is of the activations' dtype as wide as the weights."""
    ids, weights, normed, summed = outputs
    return *route_canonical((ids, weights)), normed.to(weights.dtype), summed.to(weights.dtype)


def gate_cost(traits: Traits, sizes: Sizes) -> Cost:
    experts, top_k, width, dtype = (
        whole(traits, "experts"), whole(traits, "top_k"), whole(traits, "width"), traits["x_dtype"],
    )  # fmt: skip
    assert isinstance(dtype, torch.dtype)
    moved = (experts + sizes.tokens) * width * dtype.itemsize + sizes.tokens * top_k * 8
    return Cost(moved, 2 * sizes.tokens * experts * width)


def norm_gate_cost(traits: Traits, sizes: Sizes) -> Cost:
    gated, width, dtype = gate_cost(traits, sizes), whole(traits, "width"), traits["x_dtype"]
    assert isinstance(dtype, torch.dtype)
    moved = (3 * sizes.tokens + 1) * width * dtype.itemsize
    return Cost(gated.bytes + moved, gated.flop + 5 * sizes.tokens * width)


def route_cost(traits: Traits, sizes: Sizes) -> Cost:
    experts, top_k = whole(traits, "experts"), whole(traits, "top_k")
    return Cost(sizes.tokens * (experts * 4 + top_k * 8), sizes.tokens * experts * 4)


def route_legal(traits: Traits) -> str | None:
    experts, top_k, groups, groups_top = (
        whole(traits, n) for n in ("experts", "top_k", "groups", "groups_top")
    )
    if experts % groups:
        return f"experts {experts} is not a multiple of groups {groups}"
    if groups_top > groups:
        return f"groups_top {groups_top} is more than groups {groups}"
    if top_k > experts // groups * groups_top:
        return (
            f"top_k {top_k} is more than the {experts // groups * groups_top} experts of {groups_top} groups"
        )
    if traits["group_score"] == "top2_sum" and groups_top < groups and experts // groups < 2:
        return "group_score top2_sum wants at least two experts in a group"
    return None


def route_canonical(outputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Order each token's experts by id: the op leaves their order open."""
    ids, weights = outputs
    order = ids.argsort(-1)
    return ids.gather(1, order), weights.gather(1, order)


def _route(experts: int, top_k: int, groups: int, groups_top: int, scoring: str, group_score: str) -> Traits:
    return {
        "experts": experts,
        "top_k": top_k,
        "groups": groups,
        "groups_top": groups_top,
        "scoring": scoring,
        "group_score": group_score,
    }


_ROUTING = (
    count("experts", (64, 128, 256, 8), "experts in all (E)"),
    count("top_k", (6, 8, 2), "experts of a token (k)"),
    Trait("groups", (1, 8), "groups of experts", default=1),
    Trait("groups_top", (1, 4, 8), "groups a token may choose from", default=1),
    Trait("scoring", ("softmax", "sigmoid"), "how logits become scores", "softmax", ("softmax", "sigmoid")),
    Trait("group_score", ("max", "top2_sum"), "how good a group is", "max", ("max", "top2_sum")),
)
_CHOICE = (
    "keywords top_k, groups, groups_top (how many groups may be chosen from; groups_top = groups means no "
    "limit), scoring (softmax over all experts, or sigmoid), group_score (a group is as good as its max, or the "
    "sum of its top two), normalise (weights sum to one before scaling), scale -> (ids [T, k] int32, weights "
    "[T, k] float32), order within a token open. Bias helps to be chosen, not to weigh. Equal scores: the lower "
    "id."
)
_GATES = (_route(64, 6, 1, 1, "sigmoid", "top2_sum"), _route(256, 8, 8, 4, "sigmoid", "top2_sum"))

GATE = Op(
    name="moe.gate",
    summary="Multiply activations by the gate, exact products in float32 sums, and choose each token's experts.",
    prepare_shapes="weight [E, C] float32 -> w (opaque; narrower only where that changes no number).",
    shapes=(
        f"x [T, C] contiguous, w, bias [E] float32 or None; {_CHOICE} With write_index [T] int64 a token whose "
        "index is negative (padding) chooses nothing: ids -1, weights 0."
    ),
    source="DeepSeek-V2, arXiv 2405.04434 (groups, softmax); DeepSeek-V3, arXiv 2412.19437 (sigmoid, bias).",
    traits=(
        Trait("x_dtype", (BF16, FP32), "of the activations", choices=(BF16, FP32, torch.float16)),
        WIDTH,
        *_ROUTING,
    ),
    reference=Plain(ref.gate, ref.gate_prepare),
    sizes=(Sizes(1), Sizes(3), Sizes(5), Sizes(33)),
    points=tuple(
        Point({"x_dtype": BF16, "width": 2048, **traits}, Sizes(tokens))
        for traits in _GATES
        for tokens in (1, 8, 64, 512)
    ),
    inputs=gate_inputs,
    tolerance={FP32: ROUNDED[FP32]},
    cost=gate_cost,
    legal=route_legal,
    canonical=route_canonical,
)

NORM_GATE = replace(
    GATE,
    name="moe.norm_gate",
    summary="Add x to the residual stream, RMS-normalise the sum, and route by that.",
    shapes=(
        "x [T, C] and residual [T, C] contiguous, norm_weight [C], eps; w, bias and keywords as of `moe.gate` -> "
        "(ids, weights, y [T, C], new residual [T, C]): `norm.add_rms`, then `moe.gate` of y. The new residual may "
        "be the argument itself, changed in place: use what is returned."
    ),
    reference=Plain(ref.norm_gate, ref.gate_prepare),
    sizes=(Sizes(1), Sizes(3), Sizes(5), Sizes(33)),
    points=tuple(
        Point({"x_dtype": BF16, "width": 2048, **traits}, Sizes(tokens))
        for traits in _GATES
        for tokens in (1, 8)
    ),
    inputs=norm_gate_inputs,
    tolerance={FP32: SUMMED[BF16]},
    cost=norm_gate_cost,
    canonical=norm_gate_canonical,
)

ROUTE = Op(
    name="moe.route",
    summary="Choose each token's experts and their weights.",
    shapes=f"logits [T, E] float32, bias [E] float32 or None; {_CHOICE}",
    source="DeepSeek-V2, arXiv 2405.04434 (groups, softmax); DeepSeek-V3, arXiv 2412.19437 (sigmoid, bias).",
    traits=_ROUTING,
    reference=Plain(ref.route),
    sizes=(Sizes(1), Sizes(5), Sizes(33)),
    points=tuple(
        Point(traits, Sizes(tokens))
        for traits in (_route(128, 8, 1, 1, "softmax", "max"), _route(256, 8, 8, 4, "sigmoid", "top2_sum"))
        for tokens in (1, 8, 512)
    ),
    inputs=route_inputs,
    tolerance={FP32: ROUNDED[FP32]},
    cost=route_cost,
    legal=route_legal,
    canonical=route_canonical,
)


def experts_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    """The second token has a choice before the first expert and, where there are two, one beyond the last. The
    shared experts are half as loud: a kernel may make them of dense maps, each of which rounds."""
    experts, top_k, width, ffn = (whole(traits, name) for name in ("experts", "top_k", "width", "ffn"))
    dtype, shared = dtype_of(traits), whole(traits, "shared") * ffn
    ids = torch.stack([draw.permutation(experts)[:top_k] for _ in range(sizes.tokens)]).to(torch.int32)
    ids[1:2, :1], ids[1:2, 1:2] = -1, experts + 1
    args = {
        "x": draw.normal(sizes.tokens, width, dtype=dtype),
        "ids": ids,
        "weights": draw.normal(sizes.tokens, top_k, dtype=FP32).softmax(-1),
    }
    weights = (
        draw.normal(experts, 2 * ffn, width, dtype=dtype, scale=width**-0.5),
        draw.normal(experts, width, ffn, dtype=dtype, scale=ffn**-0.5),
    )
    if shared:
        weights += (
            draw.normal(2 * shared, width, dtype=dtype, scale=width**-0.5),
            draw.normal(width, shared, dtype=dtype, scale=0.5 * shared**-0.5),
        )
    if traits["format"] == "fp8_block":
        values, scales = zip(*map(quantise_fp8_block, weights), strict=True)
        weights = (*values, *(None,) * (4 - len(values)), *scales)
    return Inputs(args=args, weights=weights, weights_as=("w",), out=(sizes.tokens, width))


def experts_cost(traits: Traits, sizes: Sizes) -> Cost:
    """Bytes count each expert once, as many as independent uniform choices touch on average."""
    experts, top_k, width, ffn, shared = (
        whole(traits, name) for name in ("experts", "top_k", "width", "ffn", "shared")
    )
    item = dtype_of(traits).itemsize if traits["format"] == "native" else 1
    touched = experts * (1 - (1 - top_k / experts) ** sizes.tokens) + shared
    moved = touched * 3 * width * ffn * item + 2 * sizes.tokens * width * dtype_of(traits).itemsize
    return Cost(round(moved), 6 * sizes.tokens * (top_k + shared) * width * ffn)


def experts_legal(traits: Traits) -> str | None:
    experts, top_k = whole(traits, "experts"), whole(traits, "top_k")
    if traits["format"] == "fp8_block" and whole(traits, "ffn") % FP8_BLOCK:
        return f"format fp8_block wants ffn {traits['ffn']} to be a multiple of {FP8_BLOCK}: gate and up share no block"
    return f"top_k {top_k} is more than experts {experts}" if top_k > experts else None


EXPERTS = Op(
    name="moe.experts",
    summary=(
        "Run each token through its experts and sum, weight * W2 (silu(W1 x) * W3 x); add the shared experts, "
        "which every token runs with weight one."
    ),
    prepare_shapes=(
        "w13 [E, 2F, C] (gate rows, then up rows), w2 [E, C, F]; with shared experts (trait, S) also shared13 "
        "[2 S F, C] (all gate rows, then all up rows), shared2 [C, S F] -> w (opaque; format is the trait, int8 "
        "as in `linear.dense`, one scale per output channel of each expert; fp8_block takes e4m3 and after the "
        "weights as many scales, float32: scale13 [E, 2F / 128, ceil(C / 128)], scale2 [E, ceil(C / 128), F / 128], "
        "and with shared experts shared_scale13 and shared_scale2)."
    ),
    shapes=(
        "x [T, C] contiguous, ids [T, k] int32, weights [T, k] float32, w -> [T, C]. A token's ids differ; an "
        "id outside 0..E-1 (an expert of another rank, a row of padding) is skipped."
    ),
    source="Shazeer et al., arXiv 1701.06538; gated experts as in Mixtral, arXiv 2401.04088.",
    traits=(
        DTYPE,
        count("experts", (8, 16, 5), "experts on this rank (E)"),
        count("top_k", (2, 4, 1), "experts of a token (k)"),
        count("width", (256, 512, 72), WIDTH.meaning),
        count("ffn", (128, 96, 384), "channels inside an expert (F)"),
        Trait("shared", (0, 2), "experts that every token shares (S)", default=0, least=0),
        FORMAT,
    ),
    reference=Plain(ref.experts, ref.experts_prepare, prepare_traits=("format",)),
    sizes=(Sizes(1), Sizes(3), Sizes(40)),
    points=tuple(
        Point(
            {"dtype": BF16, "experts": 16, "top_k": 4, "width": 1024, "ffn": 512, "format": format},
            Sizes(tokens),
        )
        for format in ("native", "int8")
        for tokens in (1, 8, 64, 512)
    )
    + tuple(
        Point(
            {"dtype": BF16, "experts": 64, "top_k": 6, "width": 2048, "ffn": 1408, "shared": shared},
            Sizes(tokens),
        )
        for shared in (0, 2)
        for tokens in (1, 16, 64)
    ),
    inputs=experts_inputs,
    tolerance=SUMMED,
    cost=experts_cost,
    legal=experts_legal,
)


OPS = (GATE, NORM_GATE, ROUTE, EXPERTS)
