# SPDX-License-Identifier: MIT
"""Ops `attention.*` over paged arenas.

In: queries (tokens may be strided), arenas, tables [R, B] int32, context lengths [R] int32. Out: new tensors.
Tables and lengths are trusted beyond their shapes: they come from the scheduler's plan.

Law: the result of a (row, position) is bitwise the same alone and in a batch, in one chunk or several; for
`gqa_*` also by decode and by extend. `mla_decode` attends in the latent space and `mla_extend` in raised keys
and values, so these two agree only to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.cpu import _cpu
from tokenspeed.kernels.cpu.buffers import DTYPES, expect, output
from tokenspeed.kernels.cpu.linear import PackedWeight, pack
from tokenspeed.kernels.ref import attention as ref


def _check_table(block_table: Tensor, context_lens: Tensor) -> int:
    rows = context_lens.shape[0]
    expect(
        block_table.shape[0] >= rows
        and block_table.stride(1) == 1
        and block_table.dtype is context_lens.dtype is torch.int32
        and context_lens.stride(0) == 1,
        "want block_table [R, B] and context_lens [R], int32",
        block_table,
        context_lens,
    )
    return rows


def _check_gqa(q: Tensor, k_arena: Tensor, v_arena: Tensor) -> None:
    _, _, kv_heads, head_dim = k_arena.shape
    expect(
        q.shape[2] == head_dim
        and q.shape[1] % kv_heads == 0
        and k_arena.shape == v_arena.shape
        and q.stride(2) == 1
        and q.stride(1) == head_dim
        and k_arena.is_contiguous()
        and v_arena.is_contiguous()
        and q.dtype is k_arena.dtype is v_arena.dtype,
        "want q [T, H, D] with dense heads and arenas [N, P, K, D] of its dtype, K dividing H",
        q,
        k_arena,
        v_arena,
    )


def gqa_decode(
    q: Tensor,
    k_arena: Tensor,
    v_arena: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Attend with one query token a row."""
    _check_gqa(q, k_arena, v_arena)
    rows = _check_table(block_table, context_lens)
    tokens, heads, head_dim = q.shape
    expect(tokens == rows, "want one query token a row", q, context_lens)
    y = output(out, (tokens, heads, head_dim), q.dtype)
    _cpu.gqa(
        q.data_ptr(), heads, k_arena.shape[2], head_dim, q.stride(0), k_arena.data_ptr(), v_arena.data_ptr(),
        block_table.data_ptr(), block_table.stride(0), k_arena.shape[1], rows, context_lens.data_ptr(), 0,
        scale, y.data_ptr(), DTYPES[q.dtype],
    )  # fmt: skip
    if not context_lens.all():
        y[context_lens == 0] = 0
    return y


def gqa_extend(
    q: Tensor,
    k_arena: Tensor,
    v_arena: Tensor,
    block_table: Tensor,
    row_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Attend causally with each row's new tokens, which are the last of its context."""
    _check_gqa(q, k_arena, v_arena)
    rows = _check_table(block_table, context_lens)
    _check_starts(row_starts, rows)
    tokens, heads, head_dim = q.shape
    y = output(out, (tokens, heads, head_dim), q.dtype)
    _cpu.gqa(
        q.data_ptr(), heads, k_arena.shape[2], head_dim, q.stride(0), k_arena.data_ptr(), v_arena.data_ptr(),
        block_table.data_ptr(), block_table.stride(0), k_arena.shape[1], rows, context_lens.data_ptr(),
        row_starts.data_ptr(), scale, y.data_ptr(), DTYPES[q.dtype],
    )  # fmt: skip
    return y


def _check_starts(row_starts: Tensor, rows: int) -> None:
    expect(
        row_starts.shape == (rows + 1,) and row_starts.dtype is torch.int32 and row_starts.stride(0) == 1,
        f"want row_starts [{rows + 1}] int32",
        row_starts,
    )


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    arena: Tensor,
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
    """Attend in the latent space: the latent is key (with the rope part) and value.

    Several tokens of a row are as many rows, each with the context it may see. Nothing on a CPU wants `lse`:
    the reference fills it.
    """
    if lse is not None:
        return ref.mla_decode(
            q_latent, q_rope, arena, block_table, context_lens, scale, row_starts=row_starts, lse=lse, out=out
        )
    tokens, rows = q_latent.shape[0], context_lens.shape[0]
    if row_starts is None and tokens != rows:
        row_starts = torch.arange(rows + 1, dtype=torch.int32) * (tokens // rows)
    if row_starts is not None:
        _check_starts(row_starts, rows)
        block_table, context_lens = _a_row_each(block_table, context_lens, row_starts)
    rows = _check_table(block_table, context_lens)
    _, heads, latent_dim = q_latent.shape
    rope_dim = q_rope.shape[2]
    expect(
        q_latent.shape[:2] == q_rope.shape[:2] == (rows, heads)
        and arena.shape[2] == latent_dim + rope_dim
        and arena.is_contiguous()
        and q_latent.stride(2) == q_rope.stride(2) == 1
        and q_latent.dtype is q_rope.dtype is arena.dtype,
        "want q_latent [T, H, L], q_rope [T, H, Dr] and an arena [N, P, L + Dr] of their dtype",
        q_latent,
        q_rope,
        arena,
    )
    y = output(out, (rows, heads, latent_dim), q_latent.dtype)
    _cpu.mla_decode(
        q_latent.data_ptr(), q_rope.data_ptr(), heads, latent_dim, rope_dim, q_latent.stride(0),
        q_latent.stride(1), q_rope.stride(0), q_rope.stride(1), arena.data_ptr(), block_table.data_ptr(),
        block_table.stride(0), arena.shape[1], rows, context_lens.data_ptr(), scale, y.data_ptr(),
        DTYPES[arena.dtype],
    )  # fmt: skip
    if not context_lens.all():
        y[context_lens == 0] = 0
    return y


def _a_row_each(block_table: Tensor, context_lens: Tensor, row_starts: Tensor) -> tuple[Tensor, Tensor]:
    """Give each of T tokens a line of the table and the context it sees, none in a row of no context."""
    rows = context_lens.shape[0]
    lengths = row_starts.diff()
    row_of = torch.repeat_interleave(torch.arange(rows), lengths)
    unseen = row_starts[1:][row_of] - 1 - torch.arange(len(row_of))
    return block_table[row_of], (context_lens[row_of] - unseen).clamp(min=0).to(torch.int32)


def mla_pack(w_uk: Tensor, w_uv: Tensor) -> tuple[PackedWeight, PackedWeight]:
    """Pack what raises keys [H, Dn, L] and values [H, L, Dv] from the latent."""
    return pack(w_uk), pack(w_uv.transpose(1, 2))


@dataclass(frozen=True, slots=True)
class _Dims:
    heads: int
    latent: int
    rope: int
    nope: int
    value: int


def _mla_dims(q: Tensor, arena: Tensor, w_uk: PackedWeight, w_uv: PackedWeight) -> _Dims:
    dims = _Dims(w_uk.matrices, w_uk.inputs, arena.shape[2] - w_uk.inputs, w_uk.outputs, w_uv.outputs)
    expect(
        q.shape[1:] == (dims.heads, dims.nope + dims.rope)
        and w_uv.matrices == dims.heads
        and w_uv.inputs == dims.latent
        and dims.nope % 2 == 0
        and arena.is_contiguous()
        and q.stride(2) == 1
        and q.stride(1) == q.shape[2]
        and q.dtype is arena.dtype is w_uk.dtype is w_uv.dtype,
        f"want q [T, {dims.heads}, {dims.nope + dims.rope}] with dense heads and an arena of its dtype",
        q,
        arena,
    )
    return dims


def mla_extend(
    q: Tensor,
    arena: Tensor,
    w_uk: PackedWeight,
    w_uv: PackedWeight,
    block_table: Tensor,
    row_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    contexts: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend causally with keys and values raised from the latent to every head."""
    dims = _mla_dims(q, arena, w_uk, w_uv)
    rows = _check_table(block_table, context_lens)
    _check_starts(row_starts, rows)
    y = output(out, (q.shape[0], dims.heads, dims.value), q.dtype)
    _cpu.mla_extend(
        q.data_ptr(), dims.heads, dims.latent, dims.rope, dims.nope, dims.value, q.stride(0),
        arena.data_ptr(), w_uk.where, w_uv.where, block_table.data_ptr(), block_table.stride(0),
        arena.shape[1], rows, context_lens.data_ptr(), row_starts.data_ptr(), scale, y.data_ptr(),
        DTYPES[q.dtype],
    )  # fmt: skip
    return y
