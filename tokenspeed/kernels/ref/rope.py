# SPDX-License-Identifier: MIT
"""Rotary embedding fused with what always surrounds it: per-head norms before, the write into the KV arena
after.

In: projected q and new k/v (or latent), angles, positions and the flat place of each token. Out: the rotated
q, and the arenas changed at `write_index` and nowhere else, nowhere at all where that is negative. Math is
float32, or float64 when the inputs are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenspeed.kernels.fp8 import E4M3, Heads, Latents, quantised
from tokenspeed.kernels.ref.dense import heads, normalised
from tokenspeed.kernels.ref.math import finish, wide


def gqa_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    write_index: Tensor,
    k_arena: Tensor | Heads,
    v_arena: Tensor | Heads,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    *,
    interleaved: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise q and k per head if norms are given, rotate both, write k and v, return q."""
    angles = cos_sin[positions]
    wide_q = wide(q) if q_norm is None else normalised(wide(q), q_norm, eps)
    wide_k = wide(k) if k_norm is None else normalised(wide(k), k_norm, eps)
    _write_heads(k_arena, write_index, rotated(wide_k, angles, interleaved))
    _write_heads(v_arena, write_index, v)
    return finish(rotated(wide_q, angles, interleaved), q.dtype, out)


def mla_write(
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    norm_weight: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    write_index: Tensor,
    arena: Tensor | Latents,
    *,
    interleaved: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise the latent, rotate the rope parts, write [latent | k_rope], return q_rope."""
    angles = cos_sin[positions]
    key = rotated(wide(k_rope)[:, None, :], angles, interleaved)[:, 0]
    vectors = normalised(wide(latent), norm_weight, eps)
    if isinstance(arena, Latents):
        values, scale = quantised(vectors)
        _write(arena.values, write_index, values)
        _write(arena.rope, write_index, key)
        _write(arena.scale, write_index, scale)
    else:
        _write(arena, write_index, torch.cat((vectors, key), -1))
    return finish(rotated(wide(q_rope), angles, interleaved), q_rope.dtype, out)


def mla_absorb_prepare(w_uk: Tensor) -> Tensor:
    """Keep the weight [H, Dn, L] as it is."""
    return w_uk


def mla_absorb_write(
    q: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    norm_weight: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    write_index: Tensor,
    arena: Tensor | Latents,
    w: Tensor,
    *,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Multiply the first part of each query head into the latent space; do as `mla_write` with the rest."""
    nope = w.shape[1]
    places = (cos_sin, positions, write_index, arena)
    q_rope = mla_write(q[..., nope:], latent, k_rope, norm_weight, eps, *places, interleaved=interleaved)
    return heads(q[..., :nope], w), q_rope


def rotated(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    """Rotate the first dimensions of x [T, heads, D] by angles [T, rot] (cosines, then sines); the others
    pass.

    Pairs are (i, i + rot/2), or (2i, 2i + 1) when interleaved; a pair stays where it was.
    """
    cos, sin = (part[:, None, :].to(x.dtype) for part in angles.chunk(2, -1))
    rot = angles.shape[-1]
    turning, passing = x[..., :rot], x[..., rot:]
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning.chunk(2, -1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    together = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((together, passing), -1)


def _write_heads(arena: Tensor | Heads, write_index: Tensor, vectors: Tensor) -> None:
    if isinstance(arena, Heads):
        values, scale = quantised(wide(vectors))
        _write(arena.values, write_index, values)
        _write(arena.scale, write_index, scale)
    else:
        _write(arena, write_index, vectors)


def _write(plane: Tensor, write_index: Tensor, values: Tensor) -> None:
    kept = write_index >= 0
    flat, rows = plane.view(-1, *plane.shape[2:]), values[kept].to(plane.dtype)
    if plane.dtype is E4M3:  # torch indexes no 8-bit floats everywhere
        flat, rows = flat.view(torch.uint8), rows.view(torch.uint8)
    flat[write_index[kept]] = rows
