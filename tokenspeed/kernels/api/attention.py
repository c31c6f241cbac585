# SPDX-License-Identifier: MIT
"""Ops `attention.*`: read a paged context. Decode has one query token a row, extend has many and is causal.

New tokens are already in the arena (`rope.*_write` runs before), and are the last of their row's context. A
table has one line per row; its entries past the row's context are never read. Keys are already rotated. Where the
trait `kv` is fp8, an arena is what `kernels.fp8` defines: `Latents` in the place of [N, P, L + Dr], `Heads` in that of
[N, P, K, D].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenspeed.kernels.api.traits import (
    BF16,
    BLOCK_TOKENS,
    DTYPE,
    FP32,
    HEAD_DIM,
    HEADS,
    KV,
    KV_HEADS,
    LATENT,
    ROPE,
    SUMMED,
    count,
    dtype_of,
    whole,
)
from tokenspeed.kernels.draw import Draw, Table
from tokenspeed.kernels.fp8 import Heads, Latents, quantised
from tokenspeed.kernels.ref import attention as ref
from tokenspeed.kernels.spec import Cost, Inputs, Op, Plain, Point, Sizes, Tolerance, Traits


@dataclass(frozen=True, slots=True)
class SharedBlocks:
    """Rows of a decode step that begin with the same blocks, in G groups (a group without context is none).

    Its tensors say how to attend to what a group shares once for all its rows, and to what each row has alone;
    log-sums join the two. `*_at` are places in a block table [R, B], flat.
    """

    order: Tensor
    """[R] int32: rows, group after group; what follows the last group means nothing."""
    row_starts: Tensor
    """[G + 1] int32: where each group begins in `order`."""
    context_lens: Tensor
    """[G] int32: tokens that each group shares, whole blocks."""
    table_at: Tensor
    """[G] int64: where the table of a row of each group begins."""
    own_lens: Tensor
    """[R] int32: tokens of each row that its group does not share."""
    own_at: Tensor
    """[R] int64: where the first block of these stands."""
    place_of: Tensor
    """[R] int32: where each row stands in `order`, -1 where it is in no group."""


DECODE = (
    Sizes(contexts=(1,)),
    Sizes(contexts=(63, 64, 65, 0, 1)),
    Sizes(contexts=(0, 700, 3, 129)),
)
EXTEND = (
    Sizes(contexts=(1,), lengths=(1,)),
    Sizes(contexts=(40,), lengths=(40,)),
    Sizes(contexts=(130, 65, 200, 9), lengths=(1, 65, 100, 3)),
)
DECODE_POINTS = tuple(Sizes(contexts=(context,) * rows) for rows in (1, 8) for context in (128, 2048, 8192))
EXTEND_POINTS = (
    Sizes(contexts=(512,), lengths=(512,)),
    Sizes(contexts=(4096,), lengths=(512,)),
    Sizes(contexts=(8192,), lengths=(64,)),
)


def _lengths(sizes: Sizes) -> tuple[int, ...]:
    return sizes.lengths or (1,) * len(sizes.contexts)


def _pairs(sizes: Sizes) -> int:
    """How many (query, key) pairs the causal mask leaves."""
    return sum(n * (c - n) + n * (n + 1) // 2 for c, n in zip(sizes.contexts, _lengths(sizes), strict=True))


def heads_arena(traits: Traits, vectors: Tensor) -> Tensor | Heads:
    """Vectors [N, P, K, D] as the trait `kv` has them held."""
    return vectors if traits["kv"] == "native" else Heads(*quantised(vectors.float()))


def latents_arena(traits: Traits, draw: Draw, table: Table) -> Tensor | Latents:
    """Draw an arena of latents, held as the trait `kv` says; places without context are NaN."""
    latent, rope, dtype = whole(traits, "latent"), whole(traits, "rope"), dtype_of(traits)
    drawn = draw.arena(table, latent + rope, dtype=dtype)
    if traits["kv"] == "native":
        return drawn
    values, scale = quantised(drawn[..., :latent].float())
    return Latents(values, drawn[..., latent:].contiguous(), scale)


def kv_bytes(traits: Traits) -> int:
    """Bytes of a token's context: both vectors of every kv head, or its latent and rotary key."""
    item, narrow = dtype_of(traits).itemsize, traits["kv"] == "fp8"
    if "latent" in traits:
        latent, rope = whole(traits, "latent"), whole(traits, "rope")
        return latent + 4 + rope * item if narrow else (latent + rope) * item
    vector = whole(traits, "head_dim")
    return 2 * whole(traits, "kv_heads") * (vector + 4 if narrow else vector * item)


def gqa_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    heads, kv_heads, head_dim = (whole(traits, name) for name in ("heads", "kv_heads", "head_dim"))
    dtype, block_tokens = dtype_of(traits), whole(traits, "block_tokens")
    table = draw.table(sizes.contexts, _lengths(sizes), block_tokens)
    tokens = len(table.positions)
    args = {
        "q": draw.queries(tokens, heads, head_dim, dtype=dtype),
        "k_arena": heads_arena(traits, draw.arena(table, kv_heads, head_dim, dtype=dtype)),
        "v_arena": heads_arena(traits, draw.arena(table, kv_heads, head_dim, dtype=dtype)),
        "block_table": table.block_table,
    }
    if sizes.lengths:
        args["row_starts"] = table.row_starts
    args["context_lens"] = table.context_lens
    return Inputs(args={**args, "scale": head_dim**-0.5}, out=(tokens, heads, head_dim))


def gqa_cost(traits: Traits, sizes: Sizes) -> Cost:
    heads, head_dim = whole(traits, "heads"), whole(traits, "head_dim")
    item, tokens = dtype_of(traits).itemsize, sum(_lengths(sizes))
    moved = sum(sizes.contexts) * kv_bytes(traits) + 2 * tokens * heads * head_dim * item
    return Cost(moved, 4 * _pairs(sizes) * heads * head_dim)


def gqa_legal(traits: Traits) -> str | None:
    heads, kv_heads = whole(traits, "heads"), whole(traits, "kv_heads")
    return f"heads {heads} is not a multiple of kv_heads {kv_heads}" if heads % kv_heads else None


GQA_TRAITS: Traits = {"dtype": BF16, "heads": 16, "kv_heads": 8, "head_dim": 128, "block_tokens": 64}

GQA_DECODE = Op(
    name="attention.gqa_decode",
    summary="Attend with one query token a row over its paged context.",
    shapes=(
        "q [R, H, D], k_arena and v_arena [N, P, K, D], block_table [R, B] int32, context_lens [R] int32 "
        "(this token included; a row of context 0 is padding, its output is 0), scale -> [R, H, D]. Query head "
        "h reads kv head h // (H / K)."
    ),
    source="GQA, arXiv 2305.13245; paged KV, arXiv 2309.06180.",
    traits=(DTYPE, HEADS, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, KV),
    reference=Plain(ref.gqa_decode),
    sizes=DECODE,
    points=tuple(Point(GQA_TRAITS, sizes) for sizes in DECODE_POINTS),
    inputs=gqa_inputs,
    tolerance=SUMMED,
    cost=gqa_cost,
    legal=gqa_legal,
)

GQA_EXTEND = Op(
    name="attention.gqa_extend",
    summary="Attend causally with each row's new tokens over its paged context.",
    shapes=(
        "q [T, H, D], k_arena and v_arena [N, P, K, D], block_table [R, B] int32, row_starts [R + 1] "
        "int32, context_lens [R] int32 (new tokens included), scale -> [T, H, D]."
    ),
    source="GQA, arXiv 2305.13245; paged KV, arXiv 2309.06180.",
    traits=(DTYPE, HEADS, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, KV),
    reference=Plain(ref.gqa_extend),
    sizes=EXTEND,
    points=tuple(Point(GQA_TRAITS, sizes) for sizes in EXTEND_POINTS),
    inputs=gqa_inputs,
    tolerance=SUMMED,
    cost=gqa_cost,
    legal=gqa_legal,
)


MLA_DECODE_SIZES = (
    Sizes(contexts=(1,)),
    Sizes(contexts=(63, 64, 65, 0, 1)),
    Sizes(contexts=(700, 0, 3, 129, 0)),
    Sizes(contexts=(65, 0, 4, 64, 300), lengths=(4, 4, 4, 4, 4)),
    Sizes(contexts=(130, 65, 0, 200, 9), lengths=(1, 65, 2, 70, 3)),
)


def mla_decode_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    heads, latent, rope = (whole(traits, name) for name in ("heads", "latent", "rope"))
    dtype, block_tokens = dtype_of(traits), whole(traits, "block_tokens")
    table = draw.table(sizes.contexts, _lengths(sizes), block_tokens)
    tokens = sum(_lengths(sizes))
    args = {
        "q_latent": draw.queries(tokens, heads, latent, dtype=dtype),
        "q_rope": draw.queries(tokens, heads, 128 + rope, dtype=dtype)[..., 128:],
        "arena": latents_arena(traits, draw, table),
        "block_table": table.block_table,
        "context_lens": table.context_lens,
        "scale": (latent + rope) ** -0.5,
    }
    if len(set(_lengths(sizes))) > 1:
        args |= {"row_starts": table.row_starts, "row_tokens_max": max(sizes.lengths)}
    mutates = ("lse",) if sizes.lengths else ()
    if mutates:
        args["lse"] = draw.normal(tokens, heads, dtype=FP32)
    return Inputs(args=args, mutates=mutates, out=(tokens, heads, latent))


def mla_decode_cost(traits: Traits, sizes: Sizes) -> Cost:
    heads, latent, rope = (whole(traits, name) for name in ("heads", "latent", "rope"))
    item, tokens, context = dtype_of(traits).itemsize, sum(_lengths(sizes)), sum(sizes.contexts)
    moved = context * kv_bytes(traits) + tokens * heads * (2 * latent + rope) * item
    return Cost(moved, 2 * _pairs(sizes) * heads * (2 * latent + rope))


MLA_DECODE = Op(
    name="attention.mla_decode",
    summary=(
        "Attend causally in the latent space with the few new tokens of each row (absorbed MLA): the cached "
        "latent is key and value."
    ),
    shapes=(
        "q_latent [T, H, L] dense, q_rope [T, H, Dr] (last dimension dense, the others at any stride), "
        "arena [N, P, L + Dr], block_table [R, B] int32, context_lens [R] int32 (the new tokens included; a "
        "row of context 0 is padding, its output is 0), scale (of the un-absorbed head: 1 / sqrt(Dn + Dr), "
        "YaRN factor included) -> [T, H, L], still latent. row_starts [R + 1] int32 says which tokens are "
        "whose (default: T / R each), row_tokens_max how many the longest row may have (default: T); lse "
        "[T, H] float32 is filled with the log of the sum of exp(score) (-inf in padding); schedule is what "
        "`Bound.schedule(context_lens, row_tokens_max=1, row_starts=None)` returned for this step (default: made "
        "at the call). A kernel that `shares` also takes the blocks that rows begin with together, as `shared`, a "
        "`SharedBlocks`, in both: it reads them once, and the result is the same."
    ),
    source="DeepSeek-V2, arXiv 2405.04434, section 2.1.",
    traits=(DTYPE, HEADS, LATENT, ROPE, BLOCK_TOKENS, KV),
    reference=Plain(ref.mla_decode),
    sizes=MLA_DECODE_SIZES,
    points=tuple(
        Point({"dtype": BF16, "heads": heads, "latent": 512, "rope": 64, "block_tokens": 64}, sizes)
        for heads in (16, 128)
        for sizes in DECODE_POINTS
    ),
    inputs=mla_decode_inputs,
    tolerance=SUMMED,
    cost=mla_decode_cost,
)


def mla_extend_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    heads, latent, rope, nope, value = (
        whole(traits, name) for name in ("heads", "latent", "rope", "nope_dim", "value_dim")
    )
    dtype, block_tokens = dtype_of(traits), whole(traits, "block_tokens")
    table = draw.table(sizes.contexts, _lengths(sizes), block_tokens)
    tokens = len(table.positions)
    args = {
        # Raised keys may be rounded to the dtype, an error that a long query multiplies.
        "q": draw.queries(tokens, heads, nope + rope, dtype=dtype, last=25.0 if dtype is FP32 else 2.0),
        "arena": latents_arena(traits, draw, table),
        "block_table": table.block_table,
        "row_starts": table.row_starts,
        "context_lens": table.context_lens,
        "scale": (nope + rope) ** -0.5,
        "contexts": sizes.contexts,
    }
    weights = (
        draw.normal(heads, nope, latent, dtype=dtype, scale=latent**-0.5),
        draw.normal(heads, latent, value, dtype=dtype, scale=latent**-0.5),
    )
    return Inputs(args=args, weights=weights, weights_as=("w_uk", "w_uv"), out=(tokens, heads, value))


def mla_extend_cost(traits: Traits, sizes: Sizes) -> Cost:
    heads, latent, rope, nope, value = (
        whole(traits, name) for name in ("heads", "latent", "rope", "nope_dim", "value_dim")
    )
    item, tokens, context = dtype_of(traits).itemsize, sum(_lengths(sizes)), sum(sizes.contexts)
    weights = heads * latent * (nope + value)
    moved = context * kv_bytes(traits) + (weights + tokens * heads * (nope + rope + value)) * item
    return Cost(moved, 2 * _pairs(sizes) * heads * (nope + rope + value) + 2 * context * weights)


MLA_EXTEND = Op(
    name="attention.mla_extend",
    summary=(
        "Attend causally with each row's new tokens, keys and values raised from the latent to every head."
    ),
    prepare_shapes="w_uk [H, Dn, L], w_uv [H, L, Dv] -> a pair to pass in their place (packed or as it was).",
    shapes=(
        "q [T, H, Dn + Dr], arena [N, P, L + Dr], w_uk and w_uv as prepared, block_table [R, B] int32, "
        "row_starts [R + 1] int32, context_lens [R] int32 (new tokens included), scale -> [T, H, Dv]. Key "
        "of head h is [w_uk[h] latent | k_rope], value is latent w_uv[h]. contexts: context_lens as the host "
        "knows them, so that a kernel that sizes memory by them need not ask the device."
    ),
    source="DeepSeek-V2, arXiv 2405.04434, section 2.1.",
    traits=(
        DTYPE,
        HEADS,
        LATENT,
        ROPE,
        count("nope_dim", (128, 32), "dimensions of a head that do not turn (Dn)"),
        count("value_dim", (128, 32), "dimensions of a head's value (Dv)"),
        BLOCK_TOKENS,
        KV,
    ),
    reference=Plain(ref.mla_extend, ref.mla_pack),
    sizes=EXTEND,
    points=tuple(
        Point(
            {
                "dtype": BF16,
                "heads": 16,
                "latent": 512,
                "rope": 64,
                "nope_dim": 128,
                "value_dim": 128,
                "block_tokens": 64,
            },
            sizes,
        )
        for sizes in EXTEND_POINTS
    ),
    inputs=mla_extend_inputs,
    # Keys and values are raised from the latent and rounded to the dtype before they are used.
    tolerance={**SUMMED, BF16: Tolerance(1.6e-2, 3.2e-2)},
    cost=mla_extend_cost,
)

OPS = (GQA_DECODE, GQA_EXTEND, MLA_DECODE, MLA_EXTEND)
