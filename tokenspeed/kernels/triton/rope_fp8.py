# SPDX-License-Identifier: MIT
"""`rope.*_write` into a context held in 8 bits (`kernels.fp8`): norms, rotation, rounding, in one launch.

In and out as in `rope.py`, whose programs these are but for the write: a vector's largest number is known before
any of it is written. What does not turn out finite makes its scale not finite.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from tokenspeed.kernels.device import Device
from tokenspeed.kernels.fp8 import E4M3_MAX, PEAK_LEAST, Heads, Latents
from tokenspeed.kernels.needs import AtLeast, Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel, Plain
from tokenspeed.kernels.triton import linear
from tokenspeed.kernels.triton.launch import early, expect
from tokenspeed.kernels.triton.rope import HEADS_TILE, angles, expect_places, put, turn, turned
from tokenspeed.kernels.triton.stream import Weight

MAX = tl.constexpr(E4M3_MAX)
LEAST = tl.constexpr(PEAK_LEAST)


@triton.jit
def narrow(vector, scale):
    """Vectors by their scales, in the range of e4m3."""
    return tl.minimum(tl.maximum(vector / scale, -MAX), MAX)


@triton.jit
def scale_of(peak):
    """The scale of a vector whose largest number is `peak`; not a number stays so."""
    return tl.where(peak < LEAST, LEAST, peak) / MAX


@triton.jit
def _put_vectors(
    values, scales, row, rows, first, second, rest,
    D: tl.constexpr, ROT: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Write turned vectors [N, ..] in 8 bits, and their scales."""
    peak = tl.maximum(tl.max(tl.abs(first), 1, keep_dims=True), tl.max(tl.abs(second), 1, keep_dims=True))
    total = tl.sum(first + second, 1, keep_dims=True)
    if D > ROT:
        peak = tl.maximum(peak, tl.max(tl.abs(rest), 1, keep_dims=True))
        total += tl.sum(rest, 1, keep_dims=True)
    scale = scale_of(tl.where(total == total, peak, total))  # a maximum may lose what is not a number
    put(
        values, D, row, rows, narrow(first, scale), narrow(second, scale), narrow(rest, scale),
        D, ROT, PAIRS, REST, INTERLEAVED,
    )  # fmt: skip
    tl.store(scales + row, scale, row < rows)


@triton.jit
def _gqa_write(
    q, q_token, q_head, k, k_token, k_head, v, v_token, v_head, cos_sin, positions, write_index,
    k_values, k_scales, v_values, v_scales, q_norm, k_norm, eps, out, out_token, out_head,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, ROT: tl.constexpr,
    TILE: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr, NORMED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    q_tiles: tl.constexpr = (H + TILE - 1) // TILE
    k_tiles: tl.constexpr = (K + TILE - 1) // TILE
    place = tl.load(write_index + token)
    cos, sin = angles(cos_sin, tl.load(positions + token), ROT, PAIRS)
    head = tl.arange(0, TILE)[:, None]
    if tile < q_tiles:
        turn(
            q + token * q_token, q_head, out + token * out_token, out_head, tile * TILE + head, H, q_norm, eps,
            cos, sin, D, ROT, PAIRS, REST, INTERLEAVED, NORMED,
        )  # fmt: skip
    elif place >= 0:
        if tile < q_tiles + k_tiles:
            head += (tile - q_tiles) * TILE
            first, second, rest = turned(
                k + token * k_token, k_head, head, K, k_norm, eps, cos, sin, D, ROT, PAIRS, REST, INTERLEAVED,
                NORMED,
            )  # fmt: skip
            _put_vectors(
                k_values + place * (K * D), k_scales + place * K, head, K, first, second, rest, D, ROT, PAIRS, REST,
                INTERLEAVED,
            )  # fmt: skip
        else:
            head += (tile - q_tiles - k_tiles) * TILE
            column = tl.arange(0, WIDTH)[None, :]
            inside = (head < K) & (column < D)
            value = tl.load(v + token * v_token + head * v_head + column, inside, 0.0).to(tl.float32)
            total = tl.sum(value, 1, keep_dims=True)
            scale = scale_of(tl.where(total == total, tl.max(tl.abs(value), 1, keep_dims=True), total))
            to = v_values + place * (K * D) + head * D + column
            tl.store(to, narrow(value, scale).to(v_values.dtype.element_ty), inside)
            tl.store(v_scales + place * K + head, scale, head < K)


@triton.jit
def _mla_write(
    q, q_token, q_head, latent, latent_token, k_rope, k_token, norm, eps, cos_sin, positions, write_index,
    values, ropes, scales, out, out_token, out_head,
    H: tl.constexpr, L: tl.constexpr, ROT: tl.constexpr, TILE: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH: tl.constexpr, INTERLEAVED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    cos, sin = angles(cos_sin, tl.load(positions + token), ROT, PAIRS)
    head = tl.arange(0, TILE)[:, None]
    place = tl.load(write_index + token)
    if tile > 0:
        turn(
            q + token * q_token, q_head, out + token * out_token, out_head, (tile - 1) * TILE + head, H, norm,
            eps, cos, sin, ROT, ROT, PAIRS, 1, INTERLEAVED, False,
        )  # fmt: skip
    elif place >= 0:
        column = tl.arange(0, WIDTH)
        inside = column < L
        value = tl.load(latent + token * latent_token + column, inside, 0.0).to(tl.float32)
        gain = tl.load(norm + column, inside, 0.0).to(tl.float32)
        value *= tl.rsqrt(tl.sum(value * value, 0) / L + eps) * gain
        total = tl.sum(value, 0)
        scale = scale_of(tl.where(total == total, tl.max(tl.abs(value), 0), total))
        tl.store(values + place * L + column, narrow(value, scale).to(values.dtype.element_ty), inside)
        tl.store(scales + place, scale)
        only = tl.zeros((1, 1), tl.int32)
        turn(
            k_rope + token * k_token, 0, ropes + place * ROT, 0, only, 1, norm, eps, cos, sin, ROT, ROT, PAIRS, 1,
            INTERLEAVED, False,
        )  # fmt: skip


def gqa_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    write_index: Tensor,
    k_arena: Heads,
    v_arena: Heads,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    *,
    interleaved: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise q and k per head if norms are given, rotate both, write k and v in 8 bits, return q."""
    tokens, heads, head_dim = q.shape
    kv_heads, rot = k.shape[1], cos_sin.shape[1]
    expect_places(tokens, cos_sin, positions, write_index)
    expect(q.stride(2) == k.stride(2) == v.stride(2) == 1, "dense vectors q, k, v", q, k, v)
    planes = (*k_arena, *v_arena)
    expect(all(plane.is_contiguous() for plane in planes), "contiguous planes of arenas", *planes)
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    tile, ahead = min(HEADS_TILE, triton.next_power_of_2(kv_heads)), early(q.device)
    grid = (tokens, triton.cdiv(heads, tile) + 2 * triton.cdiv(kv_heads, tile))
    _gqa_write[grid](
        q, q.stride(0), q.stride(1), k, k.stride(0), k.stride(1), v, v.stride(0), v.stride(1), cos_sin,
        positions, write_index, *planes, q if q_norm is None else q_norm, k if k_norm is None else k_norm, eps,
        y, y.stride(0), y.stride(1), heads, kv_heads, head_dim, rot, tile,
        triton.next_power_of_2(rot // 2), triton.next_power_of_2(max(head_dim - rot, 1)),
        triton.next_power_of_2(head_dim), interleaved, q_norm is not None, ahead,
        num_warps=max(1, tile // 2), launch_pdl=ahead,
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
    arena: Latents,
    *,
    interleaved: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise the latent, rotate the rope parts, write the latent in 8 bits and its key, return q_rope."""
    tokens, heads, rot = q_rope.shape
    width = latent.shape[1]
    expect_places(tokens, cos_sin, positions, write_index)
    fits = q_rope.stride(2) == latent.stride(1) == k_rope.stride(1) == 1
    expect(fits, "dense vectors q_rope, latent, k_rope", q_rope, latent, k_rope)
    expect(all(plane.is_contiguous() for plane in arena), "contiguous planes of an arena", *arena)
    y = torch.empty(q_rope.shape, dtype=q_rope.dtype, device=q_rope.device) if out is None else out
    tile, ahead = min(HEADS_TILE, triton.next_power_of_2(heads)), early(q_rope.device)
    _mla_write[(tokens, 1 + triton.cdiv(heads, tile))](
        q_rope, q_rope.stride(0), q_rope.stride(1), latent, latent.stride(0), k_rope, k_rope.stride(0),
        norm_weight, eps, cos_sin, positions, write_index, arena.values, arena.rope, arena.scale, y, y.stride(0),
        y.stride(1), heads, width, rot, tile, triton.next_power_of_2(rot // 2), triton.next_power_of_2(width),
        interleaved, ahead, num_warps=4, launch_pdl=ahead,
    )  # fmt: skip
    return y


def build_absorb(traits: Traits, device: Device) -> Implementation:
    """Build `rope.mla_absorb_write` from `linear.heads` and `mla_write`: two launches."""
    heads = linear.Heads({**traits, "in_dim": traits["nope_dim"], "out_dim": traits["latent"]}, device)
    interleaved = bool(traits["interleaved"])

    def composed(
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        norm_weight: Tensor,
        eps: float,
        cos_sin: Tensor,
        positions: Tensor,
        write_index: Tensor,
        arena: Latents,
        w: Weight,
    ) -> tuple[Tensor, Tensor]:
        """Multiply the first part of each query head into the latent space; do as `mla_write` with the rest."""
        nope = w.matrices.shape[2]
        places = (cos_sin, positions, write_index, arena)
        turning = q[..., nope:]
        q_rope = mla_write(turning, latent, k_rope, norm_weight, eps, *places, interleaved=interleaved)
        return heads(q[..., :nope], w), q_rope

    return Implementation(composed, heads.prepare)


_NEEDS = Needs(sm=AtLeast((8, 9)), dtype={torch.bfloat16, torch.float16, torch.float32}, kv="fp8")

KERNELS = (
    Kernel("rope.gqa_write", "triton_fp8", _NEEDS, Band.FAST, Plain(gqa_write, call_traits=("interleaved",))),
    Kernel("rope.mla_write", "triton_fp8", _NEEDS, Band.FAST, Plain(mla_write, call_traits=("interleaved",))),
    Kernel("rope.mla_absorb_write", "composed_fp8", _NEEDS, Band.FAST, build_absorb),
)
