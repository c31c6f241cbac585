# SPDX-License-Identifier: MIT
"""Ops `rope.*`: rotate, and put the new tokens into the KV arena, in one pass.

The arenas are written at `write_index` (block * P + offset, flat over blocks) and nowhere else; indices are
distinct within a call, and a negative one (a padded row) writes nothing. Angles come as a table `cos_sin` [M,
rot] float32, cosines in the first half, sines in the second, any YaRN factor already in them; `rot` may be
less than the head (partial rotary), the dimensions past it then pass unchanged.

Where the trait `kv` is fp8, what is written is what `kernels.fp8` defines: e4m3 and a scale, `Latents` or `Heads`.
"""

from __future__ import annotations

import torch

from tokenspeed.kernels.api.attention import heads_arena, kv_bytes
from tokenspeed.kernels.api.traits import (
    BF16,
    BLOCK_TOKENS,
    DTYPE,
    HEAD_DIM,
    HEADS,
    INTERLEAVED,
    KV,
    KV_HEADS,
    LATENT,
    ROPE,
    ROUNDED,
    SUMMED,
    count,
    dtype_of,
    whole,
)
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.fp8 import Latents, quantised
from tokenspeed.kernels.ref import rope as ref
from tokenspeed.kernels.spec import Cost, Inputs, Op, Plain, Point, Sizes, Trait, Traits

SIZES = (
    Sizes(contexts=(1,)),
    Sizes(contexts=(5, 130, 64)),
    Sizes(contexts=(65, 40, 7), lengths=(33, 1, 7)),
    Sizes(contexts=(9, 0, 0)),
)
EPS = 1e-6


def _tokens(sizes: Sizes) -> int:
    return sum(sizes.lengths) if sizes.lengths else len(sizes.contexts)


def _angles(draw: Draw, positions: int, rot: int) -> torch.Tensor:
    return torch.cat(
        [turn(draw.normal(positions, rot // 2, dtype=torch.float32)) for turn in (torch.cos, torch.sin)], 1
    )


def gqa_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    heads, kv_heads, head_dim = (whole(traits, name) for name in ("heads", "kv_heads", "head_dim"))
    dtype, block_tokens = dtype_of(traits), whole(traits, "block_tokens")
    table = draw.table(sizes.contexts, sizes.lengths or (1,) * len(sizes.contexts), block_tokens)
    tokens = len(table.positions)
    fused = draw.normal(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    q, k, v = fused.split((heads, kv_heads, kv_heads), 1)
    norm, places = bool(traits["qk_norm"]), (table.blocks_total, block_tokens)
    args = {
        "q": q,
        "k": k,
        "v": v,
        "cos_sin": _angles(draw, max(sizes.contexts), whole(traits, "rotary_dim")),
        "positions": table.positions,
        "write_index": table.write_index,
        "k_arena": heads_arena(traits, draw.normal(*places, kv_heads, head_dim, dtype=dtype)),
        "v_arena": heads_arena(traits, draw.normal(*places, kv_heads, head_dim, dtype=dtype)),
        "q_norm": draw.normal(head_dim, dtype=dtype) if norm else None,
        "k_norm": draw.normal(head_dim, dtype=dtype) if norm else None,
        "eps": EPS,
    }
    return Inputs(args=args, mutates=("k_arena", "v_arena"), out_may_be="q", out=(tokens, heads, head_dim))


def gqa_cost(traits: Traits, sizes: Sizes) -> Cost:
    heads, kv_heads, head_dim = (whole(traits, name) for name in ("heads", "kv_heads", "head_dim"))
    item, tokens = dtype_of(traits).itemsize, _tokens(sizes)
    moved = tokens * (
        (2 * heads + 2 * kv_heads) * head_dim * item + kv_bytes(traits) + whole(traits, "rotary_dim") * 4
    )
    return Cost(moved, 3 * tokens * (heads + kv_heads) * head_dim)


def gqa_legal(traits: Traits) -> str | None:
    heads, kv_heads = whole(traits, "heads"), whole(traits, "kv_heads")
    rot, head_dim = whole(traits, "rotary_dim"), whole(traits, "head_dim")
    if heads % kv_heads:
        return f"heads {heads} is not a multiple of kv_heads {kv_heads}"
    if rot > head_dim or rot % 2:
        return f"rotary_dim {rot} must be even and at most head_dim {head_dim}"
    return None


GQA_WRITE = Op(
    name="rope.gqa_write",
    summary=(
        "RMS-normalise q and k per head (where norms are given), rotate both, write k and v into their "
        "arenas."
    ),
    shapes=(
        "q [T, H, D], k [T, K, D], v [T, K, D] (heads and dimensions dense, tokens at any stride: slices "
        "of one fused projection), cos_sin [M, rot] float32, positions [T] int64, write_index [T] int64, "
        "k_arena and v_arena [N, P, K, D], q_norm and k_norm [D] or None, eps -> rotated q [T, H, D]. "
        "`out` may be q itself; without it q is left as it was."
    ),
    source="RoFormer, arXiv 2104.09864; per-head norms as in Qwen3.",
    traits=(
        DTYPE,
        HEADS,
        KV_HEADS,
        HEAD_DIM,
        count("rotary_dim", (64, 128, 32), "leading dimensions of a head that turn"),
        INTERLEAVED,
        Trait("qk_norm", (False, True), "q and k are normalised per head first", default=False),
        BLOCK_TOKENS,
        KV,
    ),
    reference=Plain(ref.gqa_write, call_traits=("interleaved",)),
    sizes=SIZES,
    points=tuple(
        Point(
            {
                "dtype": BF16,
                "heads": 16,
                "kv_heads": 8,
                "head_dim": 128,
                "rotary_dim": 128,
                "interleaved": False,
                "qk_norm": True,
                "block_tokens": 64,
            },
            Sizes(contexts=(2048,) * rows, lengths=(length,) * rows),
        )
        for rows, length in ((1, 1), (8, 1), (1, 512))
    ),
    inputs=gqa_inputs,
    tolerance=ROUNDED,
    cost=gqa_cost,
    legal=gqa_legal,
)


def mla_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    heads, latent, rope = (whole(traits, name) for name in ("heads", "latent", "rope"))
    dtype, block_tokens = dtype_of(traits), whole(traits, "block_tokens")
    table = draw.table(sizes.contexts, sizes.lengths or (1,) * len(sizes.contexts), block_tokens)
    tokens = len(table.positions)
    q = draw.normal(tokens, heads, 128 + rope, dtype=dtype)
    fused = draw.normal(tokens, latent + rope, dtype=dtype)
    arena = draw.normal(table.blocks_total, block_tokens, latent + rope, dtype=dtype)
    if traits["kv"] == "fp8":
        values, scale = quantised(arena[..., :latent].float())
        arena = Latents(values, arena[..., latent:].contiguous(), scale)
    args = {
        "q_rope": q[..., 128:],
        "latent": fused[:, :latent],
        "k_rope": fused[:, latent:],
        "norm_weight": draw.normal(latent, dtype=dtype),
        "eps": EPS,
        "cos_sin": _angles(draw, max(sizes.contexts), rope),
        "positions": table.positions,
        "write_index": table.write_index,
        "arena": arena,
    }
    return Inputs(args=args, mutates=("arena",), out_may_be="q_rope", out=(tokens, heads, rope))


def mla_cost(traits: Traits, sizes: Sizes) -> Cost:
    heads, latent, rope = (whole(traits, name) for name in ("heads", "latent", "rope"))
    item, tokens = dtype_of(traits).itemsize, _tokens(sizes)
    moved = tokens * ((2 * heads * rope + latent + rope) * item + kv_bytes(traits) + rope * 4) + latent * item
    return Cost(moved, tokens * (3 * (heads + 1) * rope + 4 * latent))


def absorb_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    heads, latent, rope, nope = (whole(traits, name) for name in ("heads", "latent", "rope", "nope_dim"))
    base = mla_inputs(traits, sizes, draw).args
    tokens, dtype = len(base["positions"]), dtype_of(traits)
    fused = draw.normal(tokens, heads * (nope + rope) + latent + rope, dtype=dtype)
    q, kv, k_rope = fused.split((heads * (nope + rope), latent, rope), 1)
    args = {
        "q": q.view(tokens, heads, nope + rope),
        "latent": kv,
        "k_rope": k_rope,
        **{name: base[name] for name in list(base)[3:]},
    }
    w_uk = draw.normal(heads, nope, latent, dtype=dtype, scale=nope**-0.5)
    return Inputs(args=args, weights=(w_uk,), weights_as=("w",), mutates=("arena",))


def absorb_cost(traits: Traits, sizes: Sizes) -> Cost:
    heads, latent, nope = (whole(traits, name) for name in ("heads", "latent", "nope_dim"))
    item, tokens, write = dtype_of(traits).itemsize, _tokens(sizes), mla_cost(traits, sizes)
    moved = (heads * nope * latent + tokens * heads * (nope + latent)) * item
    return Cost(write.bytes + moved, write.flop + 2 * tokens * heads * nope * latent)


def mla_legal(traits: Traits) -> str | None:
    rope = whole(traits, "rope")
    return f"rope {rope} must be even" if rope % 2 else None


MLA_WRITE = Op(
    name="rope.mla_write",
    summary=(
        "Normalise the latent, rotate the rope parts of query and key, write [latent | key] into the arena."
    ),
    shapes=(
        "q_rope [T, H, Dr], latent [T, L] (not yet normalised), k_rope [T, Dr] (last dimensions dense, "
        "the others at any stride: slices of wider projections), norm_weight [L], eps, cos_sin [M, Dr] "
        "float32, positions [T] int64, write_index [T] int64, arena [N, P, L + Dr] -> rotated q_rope [T, "
        "H, Dr]. `out` may be q_rope itself, which assembles the query of `attention.mla_extend` in "
        "place; without it q_rope is left as it was."
    ),
    source=(
        "DeepSeek-V2, arXiv 2405.04434, section 2.1.3 (decoupled rotary key); its checkpoints are "
        "interleaved."
    ),
    traits=(DTYPE, HEADS, LATENT, ROPE, INTERLEAVED, BLOCK_TOKENS, KV),
    reference=Plain(ref.mla_write, call_traits=("interleaved",)),
    sizes=SIZES,
    points=tuple(
        Point(
            {"dtype": BF16, "heads": 16, "latent": 512, "rope": 64, "interleaved": True, "block_tokens": 64},
            Sizes(contexts=(2048,) * rows, lengths=(length,) * rows),
        )
        for rows, length in ((1, 1), (8, 1), (1, 512))
    ),
    inputs=mla_inputs,
    tolerance=ROUNDED,
    cost=mla_cost,
    legal=mla_legal,
)

MLA_ABSORB_WRITE = Op(
    name="rope.mla_absorb_write",
    summary="Do all that absorbed MLA needs of its projections: query heads to latent space, and `rope.mla_write`.",
    prepare_shapes="w_uk [H, Dn, L] -> w (opaque).",
    shapes=(
        "q [T, H, Dn + Dr] (last dimension dense, the others at any stride), latent, k_rope, norm_weight, "
        "eps, cos_sin, positions, write_index and arena as in `rope.mla_write`, w -> (q_latent [T, H, L] = "
        "first Dn dimensions of each head times its w_uk, rotated q_rope [T, H, Dr])."
    ),
    source="DeepSeek-V2, arXiv 2405.04434, sections 2.1.2 (absorption) and 2.1.3.",
    traits=(
        DTYPE,
        HEADS,
        LATENT,
        ROPE,
        count("nope_dim", (128, 32), "dimensions of a head that do not turn (Dn)"),
        INTERLEAVED,
        BLOCK_TOKENS,
        KV,
    ),
    reference=Plain(ref.mla_absorb_write, ref.mla_absorb_prepare, call_traits=("interleaved",)),
    sizes=SIZES,
    points=tuple(
        Point(
            {
                "dtype": BF16,
                "heads": 16,
                "latent": 512,
                "rope": 64,
                "nope_dim": 128,
                "interleaved": True,
                "block_tokens": 64,
            },
            Sizes(contexts=(2048,) * rows),
        )
        for rows in (1, 8, 64)
    ),
    inputs=absorb_inputs,
    tolerance=SUMMED,
    cost=absorb_cost,
    legal=mla_legal,
)

OPS = (GQA_WRITE, MLA_WRITE, MLA_ABSORB_WRITE)
