# SPDX-License-Identifier: MIT
"""`rope.gqa_write` and `rope.mla_write`: norms, rotation and the write into the arena in one launch.

In: projections (last dimension dense, tokens and heads at any stride), angles, places. Out: the rotated q; the
arenas are changed at `write_index` and nowhere else, nowhere at all where that is negative. Math is float32.

Both members of a rotary pair are loaded by one thread before it stores either, so that `out` may be q itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from tokenspeed.kernels.needs import AtLeast, Needs
from tokenspeed.kernels.spec import Band, Kernel, Plain
from tokenspeed.kernels.triton.launch import early, expect

HEADS_TILE = 8
"""Heads that one program turns, at most."""


@triton.jit
def angles(cos_sin, position, ROT: tl.constexpr, PAIRS: tl.constexpr):
    """The cosines and sines [N, PAIRS] of positions [N, 1], or [1, PAIRS] of one."""
    pair = tl.arange(0, PAIRS)[None, :]
    at = cos_sin + position * ROT + pair
    inside = pair < ROT // 2
    return tl.load(at, inside, 0.0), tl.load(at + ROT // 2, inside, 0.0)


@triton.jit
def turned(
    source, source_row, row, rows, norm, eps, cos, sin,
    D: tl.constexpr, ROT: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """The vectors `row` [N, 1] (those under `rows`) of `source`, normalised and rotated: first and second members
    of pairs [N, PAIRS], what does not turn [N, REST]; zero where nothing is."""
    pair = tl.arange(0, PAIRS)[None, :]
    first_at = 2 * pair if INTERLEAVED else pair
    second_at = first_at + (1 if INTERLEAVED else ROT // 2)
    inside = (row < rows) & (pair < ROT // 2)
    first = tl.load(source + row * source_row + first_at, inside, 0.0).to(tl.float32)
    second = tl.load(source + row * source_row + second_at, inside, 0.0).to(tl.float32)
    rest_at = ROT + tl.arange(0, REST)[None, :]
    resting = (row < rows) & (rest_at < D)
    if D > ROT:
        rest = tl.load(source + row * source_row + rest_at, resting, 0.0).to(tl.float32)
    if NORMED:
        squares = tl.sum(first * first + second * second, 1, keep_dims=True)
        if D > ROT:
            squares += tl.sum(rest * rest, 1, keep_dims=True)
        scale = tl.rsqrt(squares / D + eps)
        first *= scale * tl.load(norm + first_at, pair < ROT // 2, 0.0).to(tl.float32)
        second *= scale * tl.load(norm + second_at, pair < ROT // 2, 0.0).to(tl.float32)
        if D > ROT:
            rest *= scale * tl.load(norm + rest_at, rest_at < D, 0.0).to(tl.float32)
    if D == ROT:
        rest = tl.zeros((1, 1), tl.float32)
    return first * cos - second * sin, second * cos + first * sin, rest


@triton.jit
def put(
    target, target_row, row, rows, first, second, rest,
    D: tl.constexpr, ROT: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Write what `turned` returns into the vectors `row` of `target`."""
    pair = tl.arange(0, PAIRS)[None, :]
    first_at = 2 * pair if INTERLEAVED else pair
    second_at = first_at + (1 if INTERLEAVED else ROT // 2)
    inside = (row < rows) & (pair < ROT // 2)
    tl.store(target + row * target_row + first_at, first.to(target.dtype.element_ty), inside)
    tl.store(target + row * target_row + second_at, second.to(target.dtype.element_ty), inside)
    if D > ROT:
        rest_at = ROT + tl.arange(0, REST)[None, :]
        resting = (row < rows) & (rest_at < D)
        tl.store(target + row * target_row + rest_at, rest.to(target.dtype.element_ty), resting)


@triton.jit
def turn(
    source, source_row, target, target_row, row, rows, norm, eps, cos, sin,
    D: tl.constexpr, ROT: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate the vectors `row` [N, 1] (those under `rows`) of `source` into `target`."""
    first, second, rest = turned(
        source, source_row, row, rows, norm, eps, cos, sin, D, ROT, PAIRS, REST, INTERLEAVED, NORMED
    )
    put(target, target_row, row, rows, first, second, rest, D, ROT, PAIRS, REST, INTERLEAVED)


@triton.jit
def _gqa_write(
    q, q_token, q_head, k, k_token, k_head, v, v_token, v_head, cos_sin, positions, write_index,
    k_arena, v_arena, q_norm, k_norm, eps, out, out_token, out_head,
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
            turn(
                k + token * k_token, k_head, k_arena + place * (K * D), D, (tile - q_tiles) * TILE + head, K,
                k_norm, eps, cos, sin, D, ROT, PAIRS, REST, INTERLEAVED, NORMED,
            )  # fmt: skip
        else:
            head += (tile - q_tiles - k_tiles) * TILE
            column = tl.arange(0, WIDTH)[None, :]
            inside = (head < K) & (column < D)
            value = tl.load(v + token * v_token + head * v_head + column, inside)
            tl.store(v_arena + place * (K * D) + head * D + column, value, inside)


@triton.jit
def _mla_write(
    q, q_token, q_head, latent, latent_token, k_rope, k_token, norm, eps, cos_sin, positions, write_index,
    arena, out, out_token, out_head,
    H: tl.constexpr, L: tl.constexpr, ROT: tl.constexpr, TILE: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH: tl.constexpr, INTERLEAVED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    write_or_turn(
        tl.program_id(0).to(tl.int64), tl.program_id(1), q, q_token, q_head, latent, latent_token, k_rope, k_token,
        norm, eps, cos_sin, positions, write_index, arena, out, out_token, out_head, H, L, ROT, TILE, PAIRS,
        WIDTH, INTERLEAVED,
    )  # fmt: skip


@triton.jit
def write_or_turn(
    token, tile, q, q_token, q_head, latent, latent_token, k_rope, k_token, norm, eps, cos_sin, positions,
    write_index, arena, out, out_token, out_head,
    H: tl.constexpr, L: tl.constexpr, ROT: tl.constexpr, TILE: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Write a token's latent and key (tile 0), or turn the query heads of tile 1, 2, .."""
    cos, sin = angles(cos_sin, tl.load(positions + token), ROT, PAIRS)
    head = tl.arange(0, TILE)[:, None]
    if tile > 0:
        turn(
            q + token * q_token, q_head, out + token * out_token, out_head, (tile - 1) * TILE + head, H, norm,
            eps, cos, sin, ROT, ROT, PAIRS, 1, INTERLEAVED, False,
        )  # fmt: skip
    else:
        write_latent(
            latent + token * latent_token, k_rope + token * k_token, norm, eps, cos, sin, arena,
            tl.load(write_index + token), L, ROT, PAIRS, WIDTH, INTERLEAVED,
        )  # fmt: skip


@triton.jit
def write_latent(
    latent, k_rope, norm, eps, cos, sin, arena, place,
    L: tl.constexpr, ROT: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Normalise one token's latent, rotate its key, write both at `place`."""
    if place >= 0:
        to = arena + place * (L + ROT)
        column = tl.arange(0, WIDTH)
        inside = column < L
        value = tl.load(latent + column, inside, 0.0).to(tl.float32)
        gain = tl.load(norm + column, inside, 0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 0) / L + eps)
        tl.store(to + column, value * scale * gain, inside)
        only = tl.zeros((1, 1), tl.int32)
        turn(k_rope, 0, to + L, 0, only, 1, norm, eps, cos, sin, ROT, ROT, PAIRS, 1, INTERLEAVED, False)


def expect_places(tokens: int, cos_sin: Tensor, positions: Tensor, write_index: Tensor) -> None:
    """Raise ValueError unless a contiguous table of angles and one place for each token are given."""
    fits = cos_sin.is_contiguous() and positions.shape == write_index.shape == (tokens,)
    what = f"cos_sin [M, rot] contiguous, positions and write_index [{tokens}]"
    expect(fits, what, cos_sin, positions, write_index)


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
    kv_heads, rot = k.shape[1], cos_sin.shape[1]
    expect_places(tokens, cos_sin, positions, write_index)
    expect(q.stride(2) == k.stride(2) == v.stride(2) == 1, "dense vectors q, k, v", q, k, v)
    fits = k_arena.is_contiguous() and v_arena.is_contiguous()
    expect(fits, "contiguous arenas [N, P, K, D]", k_arena, v_arena)
    expect((q_norm is None) == (k_norm is None), "norms for both q and k, or for neither")
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    tile, ahead = min(HEADS_TILE, triton.next_power_of_2(kv_heads)), early(q.device)
    grid = (tokens, triton.cdiv(heads, tile) + 2 * triton.cdiv(kv_heads, tile))
    _gqa_write[grid](
        q, q.stride(0), q.stride(1), k, k.stride(0), k.stride(1), v, v.stride(0), v.stride(1), cos_sin,
        positions, write_index, k_arena, v_arena, q if q_norm is None else q_norm,
        k if k_norm is None else k_norm, eps, y, y.stride(0), y.stride(1), heads, kv_heads, head_dim, rot, tile,
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
    arena: Tensor,
    *,
    interleaved: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise the latent, rotate the rope parts, write [latent | k_rope], return q_rope."""
    tokens, heads, rot = q_rope.shape
    width = latent.shape[1]
    expect_places(tokens, cos_sin, positions, write_index)
    fits = q_rope.stride(2) == latent.stride(1) == k_rope.stride(1) == 1
    expect(fits, "dense vectors q_rope, latent, k_rope", q_rope, latent, k_rope)
    fits = arena.is_contiguous() and arena.shape[2] == width + rot
    expect(fits, "a contiguous arena [N, P, L + Dr]", arena)
    y = torch.empty(q_rope.shape, dtype=q_rope.dtype, device=q_rope.device) if out is None else out
    tile, ahead = min(HEADS_TILE, triton.next_power_of_2(heads)), early(q_rope.device)
    _mla_write[(tokens, 1 + triton.cdiv(heads, tile))](
        q_rope, q_rope.stride(0), q_rope.stride(1), latent, latent.stride(0), k_rope, k_rope.stride(0),
        norm_weight, eps, cos_sin, positions, write_index, arena, y, y.stride(0), y.stride(1), heads, width,
        rot, tile, triton.next_power_of_2(rot // 2), triton.next_power_of_2(width), interleaved, ahead,
        num_warps=4, launch_pdl=ahead,
    )  # fmt: skip
    return y


_NEEDS = Needs(sm=AtLeast((8, 0)), dtype={torch.bfloat16, torch.float16, torch.float32}, kv="native")

KERNELS = (
    Kernel("rope.gqa_write", "triton", _NEEDS, Band.FAST, Plain(gqa_write, call_traits=("interleaved",))),
    Kernel("rope.mla_write", "triton", _NEEDS, Band.FAST, Plain(mla_write, call_traits=("interleaved",))),
)
