# SPDX-License-Identifier: MIT
"""Ops `attention.mla_extend` and `attention.gqa_extend` for Hopper: what `flash` attends with, made ready.

In and out as the ops say. For MLA the contexts are gathered and raised by the vendor's matrix product (see
`triton.prefill`), each row's beginning at a multiple of the key tile, so that one descriptor serves all rows
and no tile holds two of them. For GQA keys and values stay in their pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tokenspeed.kernels.api.traits import BF16
from tokenspeed.kernels.hopper import flash
from tokenspeed.kernels.needs import AtMost, MultipleOf, Needs
from tokenspeed.kernels.spec import Band, Kernel, Plain
from tokenspeed.kernels.triton.prefill import gather_latents, head_passes, pack_raising, raise_latents

LOG2_E: Final = 1.4426950408889634
ROWS: Final = 128
"""Rows of a tile of queries."""
KEYS: Final = 128
"""Keys of a tile."""
STAGES: Final = 2
SWIZZLED: Final = gl.NVMMASharedLayout(128, 16, 2)


def _boxes(matrix: Tensor, tokens: int, dims: int) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [tokens, dims], SWIZZLED)


def _mla_extend(
    q: Tensor,
    arena: Tensor,
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
    if out is None:
        out = torch.empty((q.shape[0], heads, value), dtype=q.dtype, device=q.device)
    latents = gather_latents(arena, block_table, context_lens, contexts, KEYS)
    for some in head_passes(heads, len(latents) * raised_dim * q.element_size()):
        raised = raise_latents(latents, w_uk[some], latent)
        attend_raised(q[:, some], raised, latents, value, row_starts, context_lens, scale, out[:, some])
    return out


def attend_raised(
    q: Tensor,
    raised: Tensor,
    latents: Tensor,
    value: int,
    row_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """Attend with q [T, h, Dn + Dr] over raised [C, h, Dn + Dv] and the last Dr columns of latents [C, ..]."""
    nope = raised.shape[2] - value
    rope, rows = q.shape[2] - nope, context_lens.shape[0]
    assert q.stride(2) == out.stride(2) == 1
    flash.attend_raised[(triton.cdiv(q.shape[0], ROWS) + rows, q.shape[1])](
        q,
        _boxes(raised.flatten(1), KEYS, nope),
        _boxes(latents, KEYS, rope),
        out,
        row_starts,
        context_lens,
        rows,
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        latents.shape[1] - rope,
        DIM=nope,
        SHARED=rope,
        VALUE=value,
        KEYS=KEYS,
        STAGES=STAGES,
        num_warps=4,
    )


def _gqa_extend(
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
    """Attend causally with each row's new tokens over its pages."""
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tokens, heads, head_dim = q.shape
    _, block_tokens, kv_heads, _ = k_arena.shape
    group, rows = heads // kv_heads, context_lens.shape[0]
    lanes = triton.next_power_of_2(group)
    assert q.stride(2) == out.stride(2) == block_table.stride(1) == 1
    flash.attend_paged[(triton.cdiv(tokens * lanes, ROWS) + rows, kv_heads)](
        q,
        _boxes(k_arena.view(-1, kv_heads * head_dim), block_tokens, head_dim),
        _boxes(v_arena.view(-1, kv_heads * head_dim), block_tokens, head_dim),
        out,
        block_table,
        row_starts,
        context_lens,
        rows,
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        block_table.stride(0),
        out.stride(0),
        out.stride(1),
        GROUP=group,
        G=lanes,
        DIM=head_dim,
        KEYS=KEYS,
        STAGES=STAGES,
        num_warps=4,
    )
    return out


_HOPPER: Final = {"sm": (9, 0), "dtype": {BF16, torch.float16}}

KERNELS = (
    Kernel(
        "attention.mla_extend",
        "gluon",
        Needs(**_HOPPER, latent=MultipleOf(8), nope_dim=128, rope=64, value_dim=128),
        Band.TUNED,
        Plain(_mla_extend, pack_raising),
    ),
    Kernel(
        "attention.gqa_extend",
        "gluon",
        Needs(**_HOPPER, head_dim={64, 128}, heads=AtMost(128), block_tokens={16, 32, 64, 128}),
        Band.TUNED,
        Plain(_gqa_extend),
    ),
)
"""What `kernels.hopper` gathers."""
