# SPDX-License-Identifier: MIT
"""Ops `attention.gqa_extend` and `attention.mla_extend`: causal flash attention over ragged rows.

In: the new tokens of every row, which end its context. Out: [T, H, Dv]. One program takes a tile of queries
(all query heads of a kv head side by side) through the keys it may see; the grid is the most tiles that T
tokens in R rows can make, and a program finds its row by counting. Keys and values are read where they lie:

    gqa_extend    k, v    in pages of the arena
    mla_extend    k       per head in `raised` (what turns not), shared by all heads in `latents` (rope)
                  v       in `raised`

For MLA the latents of all rows are gathered into `latents` [C, L + Dr] (C tokens of context in all), then one
matrix product raises them to `raised` [C, h, Dn + Dv] for as many heads h as `RAISED_BYTES_MAX` allows:
passes go over heads, not over stretches of the context, so no partial sums have to be merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenspeed.kernels.api.traits import BF16, FP32
from tokenspeed.kernels.fp8 import Heads, Latents
from tokenspeed.kernels.needs import AtLeast, Needs
from tokenspeed.kernels.spec import Band, Kernel, Plain

LOG2_E: Final = 1.4426950408889634
RAISED_BYTES_MAX: Final = 2 << 30
"""Keys and values of one pass of `mla_extend`."""
ROWS_LEAST: Final = 32
"""Rows that a program counts at once: one variant of each kernel for all smaller batches."""
QUERIES: Final = 128
"""Queries of a tile, heads of the group counted."""


@triton.jit(do_not_specialize=["rows", "table_row"])
def _extend(
    q,
    k,
    v,
    k_shared,
    k_scale,
    v_scale,
    block_table,
    row_starts,
    context_lens,
    out,
    rows,
    scale_log2,
    q_token,
    q_head,
    k_token,
    k_head,
    shared_token,
    table_row,
    out_token,
    out_head,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    SHARED: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    V: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend with one tile of queries. BLOCK_TOKENS 0: keys of the rows lie one after the other, unpaged."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest contexts of a row first
    kv_head = tl.program_id(1)
    TOKENS: tl.constexpr = M // G
    row_at = tl.arange(0, ROWS)
    there = row_at < rows
    starts = tl.load(row_starts + row_at, mask=there, other=0)
    lengths = tl.load(row_starts + row_at + 1, mask=there, other=0) - starts
    contexts = tl.load(context_lens + row_at, mask=there, other=0)
    tiles = tl.cdiv(lengths, TOKENS)
    ends = tl.cumsum(tiles, 0)
    row = tl.sum((ends <= tile).to(tl.int32), 0)
    if row >= rows:
        return
    mine = row_at == row
    first = (tile - tl.sum(tl.where(row_at < row, tiles, 0), 0)) * TOKENS
    length = tl.sum(tl.where(mine, lengths, 0), 0)
    begin = tl.sum(tl.where(mine, starts, 0), 0)
    context = tl.sum(tl.where(mine, contexts, 0), 0)
    if BLOCK_TOKENS == 0:
        base = tl.sum(tl.where(row_at < row, contexts, 0), 0)
    else:
        base = row * table_row
    m, d, s = tl.arange(0, M), tl.arange(0, D), tl.arange(0, S)
    token, g = first + m // G, m % G
    asked = (token < length) & (g < GROUP)
    position = context - length + token
    query_at = (begin + token).to(tl.int64) * q_token + (kv_head * GROUP + g) * q_head
    query = tl.load(q + query_at[:, None] + d[None, :], mask=asked[:, None] & (d < DIM)[None, :], other=0.0)
    shared = query
    if SHARED:
        shared_at = query_at[:, None] + DIM + s[None, :]
        shared = tl.load(q + shared_at, mask=asked[:, None] & (s < SHARED)[None, :], other=0.0)
    top = tl.full([M], -float("inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, V], tl.float32)
    clear = (context - length + first + 1) // TILE * TILE  # keys that every query of the tile sees
    last = tl.minimum(context - length + first + TOKENS, context)
    k, v = k + kv_head * k_head, v + kv_head * k_head
    if k_scale is not None:
        k_scale, v_scale = k_scale + kv_head, v_scale + kv_head
    for key in range(0, clear, TILE):
        top, norm, acc = _step(
            query, shared, k, v, k_shared, k_scale, v_scale, block_table, base, position, key, context, top, norm, acc,
            scale_log2, k_token, shared_token,
            DIM, SHARED, VALUE, BLOCK_TOKENS, D, S, V, TILE, PRECISION, False,
        )  # fmt: skip
    for key in range(clear, last, TILE):
        top, norm, acc = _step(
            query, shared, k, v, k_shared, k_scale, v_scale, block_table, base, position, key, context, top, norm, acc,
            scale_log2, k_token, shared_token,
            DIM, SHARED, VALUE, BLOCK_TOKENS, D, S, V, TILE, PRECISION, True,
        )  # fmt: skip
    e = tl.arange(0, V)
    out_at = (begin + token).to(tl.int64) * out_token + (kv_head * GROUP + g) * out_head
    tl.store(
        out + out_at[:, None] + e[None, :],
        (acc / norm[:, None]).to(out.dtype.element_ty),
        mask=asked[:, None] & (e < VALUE)[None, :],
    )


@triton.jit
def _step(
    query, shared, k, v, k_shared, k_scale, v_scale, block_table, base, position, key, context, top, norm, acc,
    scale_log2, k_token, shared_token,
    DIM: tl.constexpr, SHARED: tl.constexpr, VALUE: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    D: tl.constexpr, S: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add the keys [key, key + TILE) to the running softmax."""
    n, d, e = key + tl.arange(0, TILE), tl.arange(0, D), tl.arange(0, V)
    seen = n < context
    if BLOCK_TOKENS == 0:
        token = (base + n).to(tl.int64)
    elif BLOCK_TOKENS % TILE == 0:
        block = tl.load(block_table + base + key // BLOCK_TOKENS).to(tl.int64)
        token = block * BLOCK_TOKENS + n % BLOCK_TOKENS
    else:
        block = tl.load(block_table + base + n // BLOCK_TOKENS, mask=seen, other=0).to(tl.int64)
        token = block * BLOCK_TOKENS + n % BLOCK_TOKENS
    if MASKED:
        keys = tl.load(
            k + token[:, None] * k_token + d[None, :], mask=seen[:, None] & (d < DIM)[None, :], other=0.0
        )
        values = tl.load(
            v + token[:, None] * k_token + e[None, :], mask=seen[:, None] & (e < VALUE)[None, :], other=0.0
        )
    else:
        keys = tl.load(k + token[:, None] * k_token + d[None, :], mask=(d < DIM)[None, :], other=0.0)
        values = tl.load(v + token[:, None] * k_token + e[None, :], mask=(e < VALUE)[None, :], other=0.0)
    if k_scale is not None:
        kv_heads = k_token // DIM
        k_by = tl.load(k_scale + token * kv_heads, mask=seen, other=1.0)
        v_by = tl.load(v_scale + token * kv_heads, mask=seen, other=1.0)
        keys, values = keys.to(query.dtype), values.to(query.dtype)
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION)
    if SHARED:
        s = tl.arange(0, S)
        mask = seen[:, None] & (s < SHARED)[None, :] if MASKED else (s < SHARED)[None, :]
        keys = tl.load(k_shared + token[:, None] * shared_token + s[None, :], mask=mask, other=0.0)
        scores = tl.dot(shared, tl.trans(keys), scores, input_precision=PRECISION)
    scores *= scale_log2
    if k_scale is not None:  # a value's scale in the exponent: weights stay in [0, 1]
        scores = scores * k_by[None, :] + tl.log2(v_by)[None, :]
    if MASKED:
        scores = tl.where(n[None, :] <= position[:, None], scores, -float("inf"))
    raised = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - raised[:, None])
    fade = tl.exp2(top - raised)
    if k_scale is None:
        norm = norm * fade + tl.sum(weights, 1)
    else:
        norm = norm * fade + tl.sum(weights / v_by[None, :], 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None], input_precision=PRECISION)
    return raised, norm, acc


@triton.jit(do_not_specialize=["rows", "table_row"])
def _gather(
    arena,
    ropes,
    scales,
    block_table,
    context_lens,
    latents,
    rows,
    table_row,
    WIDTH: tl.constexpr,
    LATENT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    TOKENS: tl.constexpr,
    W: tl.constexpr,
):
    """Copy the context of every row, one row after the other, each filled up to a multiple of ALIGN with 0. What is
    held in 8 bits is restored.
    """
    row_at = tl.arange(0, ROWS)
    contexts = tl.load(context_lens + row_at, mask=row_at < rows, other=0)
    spaces = tl.cdiv(contexts, ALIGN) * ALIGN
    ends = tl.cumsum(spaces, 0)
    total = tl.sum(spaces, 0)
    at = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    passed = ends[None, :] <= at[:, None]
    row = tl.sum(passed.to(tl.int32), 1)
    place = at - tl.sum(tl.where(passed, spaces[None, :], 0), 1)
    held = (at < total) & (place < tl.load(context_lens + row, mask=at < total, other=0))
    block = tl.load(block_table + row * table_row + place // BLOCK_TOKENS, mask=held, other=0)
    source = block.to(tl.int64) * BLOCK_TOKENS + place % BLOCK_TOKENS
    w = tl.arange(0, W)
    inside = (w < WIDTH)[None, :]
    if scales is None:
        values = tl.load(arena + source[:, None] * WIDTH + w[None, :], mask=held[:, None] & inside, other=0.0)
    else:
        narrow = held[:, None] & (w < LATENT)[None, :]
        values = tl.load(arena + source[:, None] * LATENT + w[None, :], mask=narrow, other=0.0).to(tl.float32)
        values *= tl.load(scales + source, mask=held, other=0.0)[:, None]
        turned = held[:, None] & inside & (w >= LATENT)[None, :]
        rope = tl.load(
            ropes + source[:, None] * (WIDTH - LATENT) + (w - LATENT)[None, :], mask=turned, other=0.0
        )
        values += rope.to(tl.float32)
    where = latents + at.to(tl.int64)[:, None] * WIDTH + w[None, :]
    tl.store(where, values.to(latents.dtype.element_ty), mask=(at < total)[:, None] & inside)


def gather_latents(
    arena: Tensor | Latents,
    block_table: Tensor,
    context_lens: Tensor,
    contexts: Sequence[int] | None,
    align: int = 1,
) -> Tensor:
    """Copy the rows' contexts out of their pages, restored: [C, L + Dr], row after row, each filled up with zeros to
    a multiple of `align`.
    """
    values, ropes, scales = arena if isinstance(arena, Latents) else (arena, None, None)
    latent, dtype = values.shape[2], values.dtype if ropes is None else ropes.dtype
    width = latent + (0 if ropes is None else ropes.shape[2])
    tokens, rows = 16, context_lens.shape[0]
    known: Sequence[int] = context_lens.tolist() if contexts is None else contexts
    context_tokens = sum(triton.cdiv(context, align) * align for context in known)
    latents = torch.empty((context_tokens, width), dtype=dtype, device=values.device)
    _gather[(triton.cdiv(context_tokens, tokens),)](
        values, ropes, scales, block_table, context_lens, latents, rows, block_table.stride(0),
        WIDTH=width,
        LATENT=latent,
        BLOCK_TOKENS=values.shape[1],
        ROWS=triton.next_power_of_2(max(rows, ROWS_LEAST)),
        ALIGN=align,
        TOKENS=tokens,
        W=triton.next_power_of_2(width),
        num_warps=8,
    )  # fmt: skip
    return latents


def head_passes(heads: int, head_bytes: int) -> Iterator[slice]:
    """Split heads, `head_bytes` of raised context each, into the fewest even passes that fit the workspace."""
    passes = min(heads, -(-heads * head_bytes // RAISED_BYTES_MAX))
    size = -(-heads // max(1, passes))
    yield from (slice(first, min(first + size, heads)) for first in range(0, heads, size))


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_shared: Tensor | None,
    block_table: Tensor,
    row_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
    block_tokens: int,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Attend with q [T, H, Dk], k and v seen as [tokens, K, ..] (alike in strides), k_shared [tokens, Dr]."""
    tokens, heads, rows = q.shape[0], q.shape[1], context_lens.shape[0]
    kv_heads, dim, value = k.shape[1], k.shape[2], v.shape[2]
    shared = 0 if k_shared is None else k_shared.shape[1]
    group = heads // kv_heads
    lanes = triton.next_power_of_2(group)
    assert lanes <= QUERIES, f"{group} query heads to a kv head do not fit a tile of {QUERIES}"
    assert q.stride(2) == k.stride(2) == v.stride(2) == out.stride(2) == block_table.stride(1) == 1
    assert k.stride() == v.stride()
    assert dim + shared == q.shape[2]
    narrow = q.dtype is not FP32
    queries = QUERIES if narrow else max(32, lanes)
    tiles = triton.cdiv(tokens * lanes, queries) + rows
    _extend[(tiles, kv_heads)](
        q, k, v, k if k_shared is None else k_shared, k_scale, v_scale, block_table, row_starts, context_lens, out,
        rows, scale * LOG2_E, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        0 if k_shared is None else k_shared.stride(0), block_table.stride(0), out.stride(0), out.stride(1),
        GROUP=group,
        DIM=dim,
        SHARED=shared,
        VALUE=value,
        BLOCK_TOKENS=block_tokens,
        ROWS=triton.next_power_of_2(max(rows, ROWS_LEAST)),
        M=queries,
        G=lanes,
        D=triton.next_power_of_2(max(dim, 16)),
        S=triton.next_power_of_2(max(shared, 16)),
        V=triton.next_power_of_2(max(value, 16)),
        TILE=64 if narrow else 32,
        PRECISION="ieee",
        num_warps=8 if narrow else 4,
        num_stages=2,
    )  # fmt: skip


def _gqa_extend(
    q: Tensor,
    k_arena: Tensor | Heads,
    v_arena: Tensor | Heads,
    block_table: Tensor,
    row_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Attend causally with each row's new tokens over its pages."""
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    keys, k_scale = k_arena if isinstance(k_arena, Heads) else (k_arena, None)
    values, v_scale = v_arena if isinstance(v_arena, Heads) else (v_arena, None)
    k, v = keys.flatten(0, 1), values.flatten(0, 1)
    _launch(q, k, v, None, block_table, row_starts, context_lens, scale, out, keys.shape[1], k_scale, v_scale)
    return out


def raise_latents(latents: Tensor, weight: Tensor, latent: int) -> Tensor:
    """Raise latents [C, L + ..] with weight [h, Dn + Dv, L] to [C, h, Dn + Dv]."""
    return (latents[:, :latent] @ weight.flatten(0, 1).T).view(len(latents), *weight.shape[:2])


def pack_raising(w_uk: Tensor, w_uv: Tensor) -> tuple[Tensor, Tensor]:
    """Put w_uk [H, Dn, L] and w_uv [H, L, Dv] into one matrix [H, Dn + Dv, L]; return it and its values."""
    both = torch.cat((w_uk, w_uv.transpose(1, 2)), 1)
    return both, both[:, w_uk.shape[1] :]


def _mla_extend(
    q: Tensor,
    arena: Tensor | Latents,
    w_uk: Tensor,
    w_uv: Tensor,
    block_table: Tensor,
    row_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    contexts: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Raise the context's keys and values, some heads at a time, and attend causally."""
    heads, raised_dim, latent = w_uk.shape
    value = w_uv.shape[1]
    nope = raised_dim - value
    if out is None:
        out = torch.empty((q.shape[0], heads, value), dtype=q.dtype, device=q.device)
    latents = gather_latents(arena, block_table, context_lens, contexts)
    for some in head_passes(heads, len(latents) * raised_dim * q.element_size()):
        raised = raise_latents(latents, w_uk[some], latent)
        _launch(
            q[:, some], raised[..., :nope], raised[..., nope:], latents[:, latent:],
            block_table, row_starts, context_lens, scale, out[:, some], 0,
        )  # fmt: skip
    return out


_NEEDS = Needs(sm=AtLeast((8, 0)), dtype={BF16, FP32, torch.float16}, kv="native")
_FP8 = Needs(sm=AtLeast((8, 9)), dtype={BF16, FP32, torch.float16}, kv="fp8")

KERNELS = (
    Kernel("attention.gqa_extend", "triton", _NEEDS, Band.FAST, Plain(_gqa_extend)),
    Kernel("attention.gqa_extend", "triton_fp8", _FP8, Band.FAST, Plain(_gqa_extend)),
    Kernel("attention.mla_extend", "triton", _NEEDS, Band.FAST, Plain(_mla_extend, pack_raising)),
    Kernel("attention.mla_extend", "triton_fp8", _FP8, Band.FAST, Plain(_mla_extend, pack_raising)),
)
"""What `kernels.triton` gathers."""
