# SPDX-License-Identifier: MIT
"""`rope.*`: per-head norms, rotation and the write into the arena in one pass.

In: projections (tokens may be strided, heads dense), angles, places. Out: the rotated q; the arenas are
changed at `write_index` and nowhere else. Positions and write indices are trusted: they come from the
scheduler's plan.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenspeed.kernels.cpu import _cpu, linear
from tokenspeed.kernels.cpu.buffers import DTYPES, address, expect

HEAD_DIM_MAX = 1024


def _dense_heads(x: Tensor) -> bool:
    return x.stride(2) == 1 and (x.shape[1] == 1 or x.stride(1) == x.shape[2])


def _check_places(tokens: int, cos_sin: Tensor, positions: Tensor, write_index: Tensor) -> None:
    expect(
        positions.shape == write_index.shape == (tokens,)
        and positions.dtype is write_index.dtype is torch.int64
        and positions.is_contiguous()
        and write_index.is_contiguous()
        and cos_sin.dtype is torch.float32
        and cos_sin.is_contiguous(),
        f"want positions and write_index [{tokens}] int64 and cos_sin [M, rot] float32",
        positions,
        write_index,
        cos_sin,
    )


def _output(out: Tensor | None, q: Tensor) -> Tensor:
    """Return `out`, which may be strided as q is or q itself, or a new tensor."""
    if out is None:
        return torch.empty(q.shape, dtype=q.dtype)
    expect(out.shape == q.shape and out.stride(2) == 1 and out.dtype is q.dtype, "out must be like q", out, q)
    return out


def gqa_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    write_index: Tensor,
    k_arena: Tensor,
    v_arena: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    *,
    interleaved: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise q and k per head if norms are given, rotate both, write k and v, return q."""
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    expect(
        k.shape == v.shape == (tokens, kv_heads, head_dim)
        and head_dim <= HEAD_DIM_MAX
        and _dense_heads(q)
        and _dense_heads(k)
        and _dense_heads(v)
        and (out is None or _dense_heads(out))
        and q.dtype is k.dtype is v.dtype is k_arena.dtype is v_arena.dtype,
        f"want q [T, H, D], k and v [T, K, D] of one dtype, heads dense, D <= {HEAD_DIM_MAX}",
        q,
        k,
        v,
    )
    expect(
        k_arena.shape == v_arena.shape
        and k_arena.shape[2:] == (kv_heads, head_dim)
        and k_arena.is_contiguous()
        and v_arena.is_contiguous(),
        "arenas must be [N, P, K, D], contiguous",
        k_arena,
        v_arena,
    )
    for norm in (q_norm, k_norm):
        if norm is not None:
            fits = norm.shape == (head_dim,) and norm.dtype is q.dtype
            expect(fits, f"a head norm must be [{head_dim}] of q's dtype", norm, q)
    _check_places(tokens, cos_sin, positions, write_index)
    y = _output(out, q)
    _cpu.rope_gqa(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), tokens, heads, kv_heads, head_dim, q.stride(0), k.stride(0),
        v.stride(0), cos_sin.data_ptr(), cos_sin.shape[1], positions.data_ptr(), write_index.data_ptr(),
        k_arena.data_ptr(), v_arena.data_ptr(), address(q_norm), address(k_norm), eps, y.data_ptr(),
        y.stride(0), interleaved, DTYPES[q.dtype],
    )  # fmt: skip
    return y


def mla_write(
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    norm_weight: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    write_index: Tensor,
    arena: Tensor,
    *,
    interleaved: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise the latent, rotate the rope parts, write [latent | k_rope], return q_rope."""
    tokens, heads, rope_dim = q_rope.shape
    latent_dim = latent.shape[1]
    expect(
        latent.shape[0] == tokens
        and k_rope.shape == (tokens, rope_dim)
        and q_rope.stride(2) == latent.stride(1) == k_rope.stride(1) == 1
        and latent_dim <= HEAD_DIM_MAX
        and q_rope.dtype is latent.dtype is k_rope.dtype is arena.dtype is norm_weight.dtype,
        f"want q_rope [T, H, Dr], latent [T, L <= {HEAD_DIM_MAX}] and k_rope [T, Dr] of one dtype",
        q_rope,
        latent,
        k_rope,
    )
    expect(
        arena.shape[2:] == (latent_dim + rope_dim,)
        and arena.is_contiguous()
        and cos_sin.shape[1] == rope_dim,
        f"arena must be [N, P, {latent_dim + rope_dim}], contiguous, cos_sin [M, {rope_dim}]",
        arena,
        cos_sin,
    )
    _check_places(tokens, cos_sin, positions, write_index)
    y = _output(out, q_rope)
    _cpu.rope_mla(
        q_rope.data_ptr(), latent.data_ptr(), k_rope.data_ptr(), tokens, heads, latent_dim, rope_dim,
        q_rope.stride(0), q_rope.stride(1), latent.stride(0), k_rope.stride(0), norm_weight.data_ptr(), eps,
        cos_sin.data_ptr(), positions.data_ptr(), write_index.data_ptr(), arena.data_ptr(), y.data_ptr(),
        y.stride(0), y.stride(1), interleaved, DTYPES[q_rope.dtype],
    )  # fmt: skip
    return y


def mla_absorb_write(
    q: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    norm_weight: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    write_index: Tensor,
    arena: Tensor,
    w: linear.PackedWeight,
    *,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Multiply the first part of each query head into the latent space; do as `mla_write` with the rest."""
    places = (cos_sin, positions, write_index, arena)
    turning = q[..., w.inputs :]
    q_rope = mla_write(turning, latent, k_rope, norm_weight, eps, *places, interleaved=interleaved)
    return linear.heads(q[..., : w.inputs], w), q_rope
