# SPDX-License-Identifier: MIT
"""Attention over a paged context, written plainly: gather each row's blocks, softmax in float32, one row at a
time.

In: queries, an arena of blocks (or what holds one in 8 bits, `kernels.fp8`), a table that says which blocks hold which
row. Out: new tensors, in the dtype of the queries. The arena is only read: new tokens were written by `rope.*_write`
before. Math is float32, or float64 when the inputs are. Every row reads only its own `context_lens` tokens; table
entries past them are never looked at. A decode skips a row of context 0 (padding): its output is 0, its log-sum -inf.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenspeed.kernels.fp8 import Heads, Latents, restored
from tokenspeed.kernels.ref.math import finish, wide


def gqa_decode(
    q: Tensor,
    k_arena: Tensor | Heads,
    v_arena: Tensor | Heads,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Attend with one query token a row."""
    row_starts = torch.arange(q.shape[0] + 1)
    return gqa_extend(q, k_arena, v_arena, block_table, row_starts, context_lens, scale, out=out)


def gqa_extend(
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
    """Attend causally with each row's new tokens, which are the last of its context."""
    results: list[Tensor] = []
    for row, (begin, end) in enumerate(_spans(row_starts)):
        context = int(context_lens[row])
        if context == 0:
            results.append(wide(torch.zeros_like(q[begin:end])))
            continue
        k = _gather(k_arena, block_table[row], context)
        v = _gather(v_arena, block_table[row], context)
        groups = q.shape[1] // k.shape[1]
        results.append(
            attend(wide(q[begin:end]), k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), scale)
        )
    return finish(_joined(results, q, q.shape[-1]), q.dtype, out)


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    arena: Tensor | Latents,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    row_starts: Tensor | None = None,
    row_tokens_max: int | None = None,
    lse: Tensor | None = None,
    schedule: object = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend causally in the latent space: the latent is both key and value. There is nothing to schedule."""
    rows, heads, latent = context_lens.shape[0], *q_latent.shape[1:]
    q = torch.cat((wide(q_latent), wide(q_rope)), -1)
    attended = q.new_zeros((q.shape[0], heads, latent))
    sums = q.new_full((q.shape[0], heads), -torch.inf)
    if row_starts is None:
        row_starts = torch.arange(rows + 1) * (q.shape[0] // max(rows, 1))
    for row, (begin, end) in enumerate(_spans(row_starts)):
        context = int(context_lens[row])
        if context == 0:
            continue
        kv = _gather(arena, block_table[row], context)
        scores = torch.einsum("thd,cd->thc", q[begin:end], kv) * scale
        query_at = torch.arange(context - (end - begin), context, device=q.device)
        hidden = torch.arange(context, device=q.device)[None, :] > query_at[:, None]
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        sums[begin:end] = scores.logsumexp(-1)
        attended[begin:end] = scores.softmax(-1) @ kv[:, :latent]
    if lse is not None:
        lse.copy_(sums)
    return finish(attended, q_latent.dtype, out)


def mla_extend(
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
    """Attend causally with keys and values raised from the latent to every head."""
    latent = w_uk.shape[-1]
    results: list[Tensor] = []
    for row, (begin, end) in enumerate(_spans(row_starts)):
        cached = _gather(arena, block_table[row], int(context_lens[row]))
        k_nope = torch.einsum("tl,hnl->thn", cached[:, :latent], wide(w_uk))
        k_rope = cached[:, None, latent:].expand(-1, q.shape[1], -1)
        v = torch.einsum("tl,hlv->thv", cached[:, :latent], wide(w_uv))
        results.append(attend(wide(q[begin:end]), torch.cat((k_nope, k_rope), -1), v, scale))
    return finish(_joined(results, q, w_uv.shape[-1]), q.dtype, out)


def mla_pack(w_uk: Tensor, w_uv: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the weights as they are."""
    return w_uk, w_uv


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return softmax(q k^T scale) v for q [t, H, D], k [c, H, D], v [c, H, Dv]; the t end the c."""
    new, context = q.shape[0], k.shape[0]
    scores = torch.einsum("thd,chd->htc", q, k) * scale
    query_at = torch.arange(context - new, context, device=q.device)
    hidden = torch.arange(context, device=q.device)[None, :] > query_at[:, None]
    return torch.einsum("htc,chd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def _gather(arena: Tensor | Latents | Heads, blocks: Tensor, context: int) -> Tensor:
    """The vectors of a context, wide, whatever they are held as."""
    if isinstance(arena, Tensor):
        return wide(_pages(arena, blocks, context))
    values, scale = (_pages(plane, blocks, context) for plane in (arena.values, arena.scale))
    vectors = restored(values, scale, wide(scale).dtype)
    if isinstance(arena, Heads):
        return vectors
    return torch.cat((vectors, wide(_pages(arena.rope, blocks, context))), -1)


def _pages(plane: Tensor, blocks: Tensor, context: int) -> Tensor:
    used = blocks[: -(-context // plane.shape[1])].long()
    return plane[used].flatten(0, 1)[:context]


def _spans(row_starts: Tensor) -> list[tuple[int, int]]:
    starts = row_starts.tolist()
    return list(itertools.pairwise(starts))


def _joined(results: list[Tensor], q: Tensor, width: int) -> Tensor:
    return torch.cat(results) if results else wide(q.new_zeros((0, q.shape[1], width)))
