# SPDX-License-Identifier: MIT
"""Ops `linear.dense` and `linear.heads`: a weight prepared once, multiplied every step.

`prepare` turns a checkpoint's weight into whatever the kernel likes to read (packed, quantised) and keeps
nothing of the original; its result is opaque and goes with the kernel that made it.
"""

from __future__ import annotations

from tokenspeed.kernels.api.traits import BF16, DTYPE, FORMAT, HEADS, SUMMED, count, dtype_of, whole
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.ref import dense as ref
from tokenspeed.kernels.spec import Cost, Inputs, Op, Plain, Point, Sizes, Trait, Traits


def dense_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    rows, columns = whole(traits, "out_dim"), whole(traits, "in_dim")
    dtype = dtype_of(traits)
    weight = draw.normal(rows, columns, dtype=dtype, scale=columns**-0.5)
    bias = draw.normal(rows, dtype=dtype) if traits["bias"] else None
    stored, *scale = ref.quantise_fp8_block(weight) if traits["format"] == "fp8_block" else (weight,)
    return Inputs(
        args={"x": draw.normal(sizes.tokens, columns, dtype=dtype)},
        weights=(stored, bias, *scale),
        weights_as=("w",),
        out=(sizes.tokens, rows),
    )


def dense_cost(traits: Traits, sizes: Sizes) -> Cost:
    rows, columns, item = whole(traits, "out_dim"), whole(traits, "in_dim"), dtype_of(traits).itemsize
    weight = rows * columns * (item if traits["format"] == "native" else 1)
    return Cost(weight + sizes.tokens * (rows + columns) * item, 2 * sizes.tokens * rows * columns)


def _dense(in_dim: int, out_dim: int, format: str = "native") -> Traits:
    return {
        "dtype": BF16,
        "in_dim": in_dim,
        "out_dim": out_dim,
        "bias": False,
        "format": format,
        "float32_out": False,
    }


DENSE = Op(
    name="linear.dense",
    summary="Multiply by a weight and add a bias: x W^T + b.",
    prepare_shapes=(
        "weight [O, I], bias [O] or None -> w (opaque; format is the trait: native keeps the dtype, int8 "
        "rounds the weight to int8 with one float32 scale per output channel, max|w| / 127, and leaves "
        "activations alone; fp8_block takes the weight as e4m3 and, after the bias, scale [ceil(O / 128), "
        "ceil(I / 128)] float32, one per block of 128 x 128, as DeepSeek's checkpoints have them)."
    ),
    shapes="x [T, I] contiguous -> [T, O], in x's dtype or float32 (`float32_out`).",
    traits=(
        DTYPE,
        count("in_dim", (64, 512, 200), "input channels on this rank (I)"),
        count("out_dim", (96, 320, 1), "output channels on this rank (O)"),
        Trait("bias", (False, True), "a bias is added", default=False),
        FORMAT,
        Trait("float32_out", (False, True), "the result is float32, whatever dtype is", default=False),
    ),
    reference=Plain(ref.dense, ref.dense_prepare, call_traits=("float32_out",), prepare_traits=("format",)),
    sizes=(Sizes(1), Sizes(2), Sizes(7), Sizes(33), Sizes(70)),
    points=tuple(
        Point(traits, Sizes(tokens))
        for traits in (
            _dense(1024, 3072),
            _dense(3072, 1024),
            _dense(1024, 32000),
            _dense(1024, 3072, "int8"),
        )
        for tokens in (1, 8, 64, 512)
    ),
    inputs=dense_inputs,
    tolerance=SUMMED,
    cost=dense_cost,
)


def heads_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    heads, a, b = whole(traits, "heads"), whole(traits, "in_dim"), whole(traits, "out_dim")
    dtype = dtype_of(traits)
    fused = draw.normal(sizes.tokens, heads, a + 16, dtype=dtype)
    return Inputs(
        args={"x": fused[..., :a]},
        weights=(draw.normal(heads, a, b, dtype=dtype, scale=a**-0.5),),
        weights_as=("w",),
        out=(sizes.tokens, heads, b),
    )


def heads_cost(traits: Traits, sizes: Sizes) -> Cost:
    heads, a, b = whole(traits, "heads"), whole(traits, "in_dim"), whole(traits, "out_dim")
    item = dtype_of(traits).itemsize
    return Cost((heads * a * b + sizes.tokens * heads * (a + b)) * item, 2 * sizes.tokens * heads * a * b)


HEADS_OP = Op(
    name="linear.heads",
    summary=(
        "Multiply each head's vector by that head's own matrix (absorbed MLA: query to latent, latent to "
        "value)."
    ),
    prepare_shapes="weight [H, A, B] -> w (opaque).",
    shapes="x [R, H, A], last dimension contiguous, rows and heads at any stride -> [R, H, B].",
    source="DeepSeek-V2 (arXiv 2405.04434), section 2.1.2, weight absorption.",
    traits=(
        DTYPE,
        HEADS,
        count("in_dim", (128, 512), "channels in, per head (A)"),
        count("out_dim", (512, 128, 40), "channels out, per head (B)"),
    ),
    reference=Plain(ref.heads, ref.heads_prepare),
    sizes=(Sizes(1), Sizes(3), Sizes(17)),
    points=tuple(
        Point({"dtype": BF16, "heads": 16, "in_dim": a, "out_dim": b}, Sizes(rows))
        for a, b in ((128, 512), (512, 128))
        for rows in (1, 8)
    ),
    inputs=heads_inputs,
    tolerance=SUMMED,
    cost=heads_cost,
)

OPS = (DENSE, HEADS_OP)
