# SPDX-License-Identifier: MIT
"""Ops `embedding.lookup`, `norm.*`, `activation.silu_mul`: bound by the bytes they touch."""

from __future__ import annotations

from tokenspeed.kernels.api.traits import BF16, DTYPE, ROUNDED, WIDTH, count, dtype_of, whole
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.ref import dense as ref
from tokenspeed.kernels.spec import Cost, Inputs, Op, Plain, Point, Sizes, Traits

TOKENS = (Sizes(1), Sizes(2), Sizes(7), Sizes(65))
VOCAB = 997
EPS = 1e-6


def _points(name: str, value: int) -> tuple[Point, ...]:
    return tuple(Point({"dtype": BF16, name: value}, Sizes(tokens)) for tokens in (1, 8, 512))


def lookup_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    width = whole(traits, "width")
    args = {
        "ids": draw.integers(0, VOCAB, sizes.tokens),
        "table": draw.normal(VOCAB, width, dtype=dtype_of(traits)),
    }
    return Inputs(args=args, out=(sizes.tokens, width))


def lookup_cost(traits: Traits, sizes: Sizes) -> Cost:
    return Cost(sizes.tokens * (8 + 2 * whole(traits, "width") * dtype_of(traits).itemsize), 0)


LOOKUP = Op(
    name="embedding.lookup",
    summary="Take one row of a table for each id.",
    shapes="ids [T] int64 in 0..V-1, table [V, C] -> [T, C].",
    traits=(DTYPE, WIDTH),
    reference=Plain(ref.lookup),
    sizes=TOKENS,
    points=_points("width", 1024),
    inputs=lookup_inputs,
    tolerance=ROUNDED,
    cost=lookup_cost,
)


def rms_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    width, dtype = whole(traits, "width"), dtype_of(traits)
    args = {
        "x": draw.normal(sizes.tokens, width + 8, dtype=dtype, scale=3.0)[:, :width],
        "weight": draw.normal(width, dtype=dtype),
        "eps": EPS,
    }
    return Inputs(args=args, out=(sizes.tokens, width))


def rms_cost(traits: Traits, sizes: Sizes) -> Cost:
    width, item = whole(traits, "width"), dtype_of(traits).itemsize
    return Cost((2 * sizes.tokens + 1) * width * item, 4 * sizes.tokens * width)


RMS = Op(
    name="norm.rms",
    summary="Divide each vector by its root mean square and multiply by a weight; rounded once, at the end.",
    shapes="x [T, C] (channels dense, tokens at any stride), weight [C], eps -> [T, C].",
    source="Zhang and Sennrich, arXiv 1910.07467.",
    traits=(DTYPE, WIDTH),
    reference=Plain(ref.rms),
    sizes=TOKENS,
    points=_points("width", 1024),
    inputs=rms_inputs,
    tolerance=ROUNDED,
    cost=rms_cost,
)


def add_rms_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    width, dtype = whole(traits, "width"), dtype_of(traits)
    args = {
        "x": draw.normal(sizes.tokens, width, dtype=dtype),
        "residual": draw.normal(sizes.tokens, width, dtype=dtype, scale=3.0),
        "weight": draw.normal(width, dtype=dtype),
        "eps": EPS,
    }
    return Inputs(args=args, scratch=("residual",), out=(sizes.tokens, width))


def add_rms_cost(traits: Traits, sizes: Sizes) -> Cost:
    width, item = whole(traits, "width"), dtype_of(traits).itemsize
    return Cost((4 * sizes.tokens + 1) * width * item, 5 * sizes.tokens * width)


ADD_RMS = Op(
    name="norm.add_rms",
    summary="Add x to the residual stream and RMS-normalise the sum.",
    shapes=(
        "x [T, C], residual [T, C], weight [C], eps -> (y [T, C], new residual [T, C]). The new residual "
        "may be the argument itself, changed in place: use what is returned, never the argument. `out` "
        "takes y."
    ),
    traits=(DTYPE, WIDTH),
    reference=Plain(ref.add_rms),
    sizes=TOKENS,
    points=_points("width", 1024),
    inputs=add_rms_inputs,
    tolerance=ROUNDED,
    cost=add_rms_cost,
)


def silu_mul_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    ffn = whole(traits, "ffn")
    x = draw.normal(sizes.tokens, 2 * ffn, dtype=dtype_of(traits), scale=2.0)
    return Inputs(args={"x": x}, out=(sizes.tokens, ffn))


def silu_mul_cost(traits: Traits, sizes: Sizes) -> Cost:
    ffn, item = whole(traits, "ffn"), dtype_of(traits).itemsize
    return Cost(3 * sizes.tokens * ffn * item, 5 * sizes.tokens * ffn)


SILU_MUL = Op(
    name="activation.silu_mul",
    summary="Gate: silu(first half) * second half.",
    shapes="x [T, 2F] contiguous (gate, then up) -> [T, F].",
    source="SwiGLU, Shazeer, arXiv 2002.05202.",
    traits=(DTYPE, count("ffn", (128, 1536, 40), "channels of the gated activation (F)")),
    reference=Plain(ref.silu_mul),
    sizes=TOKENS,
    points=_points("ffn", 3072),
    inputs=silu_mul_inputs,
    tolerance=ROUNDED,
    cost=silu_mul_cost,
)

OPS = (LOOKUP, RMS, ADD_RMS, SILU_MUL)
