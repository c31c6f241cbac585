# SPDX-License-Identifier: MIT
"""`rope.mla_absorb_write`: everything between the projections of absorbed MLA and its attention.

In: q [T, H, Dn + Dr], latents, keys, places, and w_uk kept as [H, L, Dn]. Out: queries in the latent space and
their rotated parts; the arena is changed at `write_index` alone. Two kernels:

    fused     one launch, up to `TOKENS_MAX` tokens: blocks for each head and tile of its matrix, and beside them those
              of `rope.mla_write`; more tokens are composed
    composed  `linear.heads` and `rope.mla_write`, two launches: 0.8 to 3.5 us more (docs/log/0010)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import AtLeast, Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel, Plain
from tokenspeed.kernels.triton.launch import early, expect
from tokenspeed.kernels.triton.linear import Heads
from tokenspeed.kernels.triton.rope import HEADS_TILE, expect_places, mla_write, write_or_turn
from tokenspeed.kernels.triton.stream import Weight

TOKENS_MAX = 64
ROWS = 64
"""Latent dimensions of a block: at 16 heads and a latent of 512, 128 blocks of 16 KiB of weights."""


@triton.jit
def _absorb_write(
    q, q_token, q_head, latent, latent_token, k_rope, k_token, norm, eps, cos_sin, positions, write_index,
    arena, w, q_latent, q_rope, T, H: tl.constexpr, L: tl.constexpr, NOPE: tl.constexpr,
    ROT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr,
    PAIRS: tl.constexpr, WIDTH: tl.constexpr, INTERLEAVED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        cuda.gdc_launch_dependents()
    cuts: tl.constexpr = (L + ROWS - 1) // ROWS
    tiles: tl.constexpr = 1 + (H + TILE - 1) // TILE
    program = tl.program_id(0)
    if program < H * cuts:
        head, cut = program // cuts, program % cuts
        row = cut * ROWS + tl.arange(0, ROWS)
        depth = tl.arange(0, DEPTH)
        at = w + head.to(tl.int64) * (L * NOPE) + row[:, None] * NOPE + depth[None, :]
        weight = tl.load(at, (row < L)[:, None] & (depth < NOPE)[None, :], 0.0)
        if EARLY:
            cuda.gdc_wait()
        token = tl.arange(0, TOKENS).to(tl.int64)
        there = token < T
        mine = q + head * q_head
        value = tl.load(
            mine + token[None, :] * q_token + depth[:, None], (depth < NOPE)[:, None] & there[None, :], 0.0
        )
        total = tl.dot(weight, value, input_precision="ieee")
        to = q_latent + (token * H + head)[None, :] * L + row[:, None]
        tl.store(to, total, (row < L)[:, None] & there[None, :])
    else:
        if EARLY:
            cuda.gdc_wait()
        small = program - H * cuts
        write_or_turn(
            (small // tiles).to(tl.int64), small % tiles, q + NOPE, q_token, q_head, latent, latent_token, k_rope,
            k_token, norm, eps, cos_sin, positions, write_index, arena, q_rope, H * ROT, ROT, H, L, ROT, TILE,
            PAIRS, WIDTH, INTERLEAVED,
        )  # fmt: skip


def prepare(w_uk: Tensor) -> Tensor:
    """Keep the weight [H, Dn, L] as [H, L, Dn]."""
    return w_uk.transpose(1, 2).contiguous()


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
    w: Tensor,
    *,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Multiply the first part of each query head into the latent space; do as `mla_write` with the rest."""
    tokens, heads, _ = q.shape
    width, nope = w.shape[1:]
    rot = cos_sin.shape[1]
    expect_places(tokens, cos_sin, positions, write_index)
    fits = q.shape[2] == nope + rot and q.stride(2) == latent.stride(1) == k_rope.stride(1) == 1
    expect(fits, f"dense vectors q [T, {heads}, {nope + rot}], latent, k_rope", q, latent, k_rope)
    fits = arena.is_contiguous() and arena.shape[2] == width + rot
    expect(fits, "a contiguous arena [N, P, L + Dr]", arena)
    q_latent = q.new_empty((tokens, heads, width))
    if tokens > TOKENS_MAX:
        torch.bmm(q[..., :nope].transpose(0, 1), w.transpose(1, 2), out=q_latent.transpose(0, 1))
        places = (cos_sin, positions, write_index, arena)
        turning = q[..., nope:]
        return q_latent, mla_write(
            turning, latent, k_rope, norm_weight, eps, *places, interleaved=interleaved
        )
    q_rope, ahead = q.new_empty((tokens, heads, rot)), early(q.device)
    tile = min(HEADS_TILE, triton.next_power_of_2(heads))
    _absorb_write[(heads * triton.cdiv(width, ROWS) + tokens * (1 + triton.cdiv(heads, tile)),)](
        q, q.stride(0), q.stride(1), latent, latent.stride(0), k_rope, k_rope.stride(0), norm_weight, eps,
        cos_sin, positions, write_index, arena, w, q_latent, q_rope, tokens, heads, width, nope, rot,
        max(16, triton.next_power_of_2(tokens)), ROWS, max(16, triton.next_power_of_2(nope)), tile,
        triton.next_power_of_2(rot // 2), triton.next_power_of_2(width), interleaved, ahead,
        num_warps=4, launch_pdl=ahead,
    )  # fmt: skip
    return q_latent, q_rope


def build_composed(traits: Traits, device: Device) -> Implementation:
    """Build the op from `linear.heads` and `rope.mla_write`."""
    heads = Heads({**traits, "in_dim": traits["nope_dim"], "out_dim": traits["latent"]}, device)
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
        arena: Tensor,
        w: Weight,
    ) -> tuple[Tensor, Tensor]:
        """Multiply the first part of each query head into the latent space; do as `mla_write` with the rest."""
        nope = w.matrices.shape[2]
        places = (cos_sin, positions, write_index, arena)
        turning = q[..., nope:]
        q_rope = mla_write(turning, latent, k_rope, norm_weight, eps, *places, interleaved=interleaved)
        return heads(q[..., :nope], w), q_rope

    return Implementation(composed, heads.prepare)


_NEEDS = Needs(sm=AtLeast((8, 0)), dtype={torch.bfloat16, torch.float16, torch.float32}, kv="native")
_FUSED = Plain(mla_absorb_write, prepare, call_traits=("interleaved",))

KERNELS = (
    Kernel("rope.mla_absorb_write", "composed", _NEEDS, Band.GENERIC, build_composed),
    Kernel("rope.mla_absorb_write", "fused", _NEEDS, Band.FAST, _FUSED),
)
