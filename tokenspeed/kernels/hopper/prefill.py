# SPDX-License-Identifier: MIT
"""Ops `attention.mla_extend` and `attention.gqa_extend` for Hopper: what `flash` attends with, made ready.

In and out as the ops say. For MLA the contexts are gathered and raised by the vendor's matrix product (see
`triton.prefill`), each row's beginning at a multiple of the key tile, so that one descriptor serves all rows
and no tile holds two of them. For GQA keys and values stay in their pages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tokenspeed.kernels.api.traits import BF16
from tokenspeed.kernels.fp8 import Latents
from tokenspeed.kernels.hopper import flash
from tokenspeed.kernels.needs import AtMost, MultipleOf, Needs
from tokenspeed.kernels.spec import Band, Kernel, Plain
from tokenspeed.kernels.triton.prefill import gather_latents, head_passes, pack_raising, raise_latents
from tokenspeed.kernels.workspace import counters

LOG2_E: Final = 1.4426950408889634
ROWS: Final = 128
"""Rows of a tile of queries."""
KEYS: Final = 128
"""Keys of a tile."""
STAGES: Final = 2
PARTS_MAX: Final = 16
"""Parts that a job is cut into, at most."""


def _boxes(tensor: Tensor, *box: int) -> TensorDescriptor:
    """Describe a tensor to the bulk copy engine, to be copied by boxes."""
    layout = gl.NVMMASharedLayout(128, 16, len(box))
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(box), layout)


@functools.cache
def _programs(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@dataclass(frozen=True, slots=True)
class _Launch:
    """How many programs run, how many parts every job has, and where parts leave their sums."""

    programs: int
    parts: int
    sums: Tensor
    stats: Tensor


def _launch(q: Tensor, jobs: int, value: int) -> _Launch:
    """Cut jobs that are too few for the chip; `jobs` may be more than there are, never fewer."""
    programs = _programs(q.device)
    parts = max(1, min(PARTS_MAX, programs // jobs))
    places = jobs * parts * ROWS if parts > 1 else 1
    sums = torch.empty((places, value), dtype=torch.float32, device=q.device)
    stats = torch.empty((places, 2), dtype=torch.float32, device=q.device)
    return _Launch(min(jobs * parts, programs), parts, sums, stats)


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
    rope, heads, rows = q.shape[2] - nope, q.shape[1], context_lens.shape[0]
    assert nope == value
    assert out.stride(2) == 1
    jobs = (-(-q.shape[0] // ROWS) + rows - 1) * heads
    launch = _launch(q, jobs, value)
    flash.attend_raised[(launch.programs,)](
        _boxes(q, ROWS, 1, nope),
        _boxes(q, ROWS, 1, rope),
        _boxes(raised.flatten(1), KEYS, nope),
        _boxes(latents, KEYS, rope),
        out,
        row_starts,
        context_lens,
        counters(q.device),
        launch.sums,
        launch.stats,
        rows,
        heads,
        launch.parts,
        scale * LOG2_E,
        out.stride(0),
        out.stride(1),
        latents.shape[1] - rope,
        STAGES=STAGES,
        SPLIT=launch.parts > 1,
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
    lanes = 1 << (group - 1).bit_length()
    assert out.stride(2) == block_table.stride(1) == 1
    jobs = (-(-tokens * lanes // ROWS) + rows - 1) * kv_heads
    launch = _launch(q, jobs, head_dim)
    flash.attend_paged[(launch.programs,)](
        _boxes(q, ROWS // lanes, lanes, head_dim),
        _boxes(k_arena.view(-1, kv_heads * head_dim), block_tokens, head_dim),
        _boxes(v_arena.view(-1, kv_heads * head_dim), block_tokens, head_dim),
        out,
        block_table,
        row_starts,
        context_lens,
        counters(q.device),
        launch.sums,
        launch.stats,
        rows,
        kv_heads,
        launch.parts,
        scale * LOG2_E,
        block_table.stride(0),
        out.stride(0),
        out.stride(1),
        GROUP=group,
        KEYS=KEYS,
        STAGES=STAGES,
        SPLIT=launch.parts > 1,
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
        Needs(**_HOPPER, kv="native", head_dim={64, 128}, heads=AtMost(128), block_tokens={16, 32, 64, 128}),
        Band.TUNED,
        Plain(_gqa_extend),
    ),
)
"""What `kernels.hopper` gathers."""
