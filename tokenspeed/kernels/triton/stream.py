# SPDX-License-Identifier: MIT
"""Weights times few tokens, at the speed of memory: every byte of a weight is read once and waits for nothing.

In: weights [G, O, I], x [T, G, I] (last dimension dense), T at most `TOKENS_MAX`. Out: y [T, G, O], in the
dtype y has, written in place. G matrices each have their own input: heads; 1 for a plain product. Two forms:

    few     T <= `FEW`: a block holds whole rows of a weight in registers, multiplies and sums (no matrix unit)
    tiles   blocks multiply tiles [rows, depth] on the matrix unit, the weight as the large operand; where rows
            alone do not fill the device, several blocks share one tile's depth and the last to arrive adds the
            parts up, in their order: runs are identical, and nothing has to be cleared between launches

Weights may be int8 with one scale a row, or e4m3 with one scale a block of 128 x 128 (then a tile lies within a
block). Launched early (`launch.early`), a block that takes all its weights at once (`few`, and `tiles` of one
step) asks for them before it waits for the kernel that makes x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from tokenspeed.kernels.triton.launch import early
from tokenspeed.kernels.workspace import counters

FEW = 4
TOKENS_LEAST, TOKENS_MAX = 16, 64
"""Narrower tiles leave the warpgroup products for smaller ones and are slower ([3648, 2048]: 7.7 us, not 6.7)."""


@triton.jit
def _few(
    x, x_token, x_group, w, scale, bias, y, y_token, y_group, outs, INS: tl.constexpr,
    T: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, FORMAT: tl.constexpr, BIASED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        cuda.gdc_launch_dependents()
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    there = row < outs
    at = w + (group * outs + row)[:, None] * INS + depth[None, :]
    weight = tl.load(at, there[:, None] & (depth < INS)[None, :], 0.0).to(tl.float32)
    if FORMAT == "fp8_block":
        blocks: tl.constexpr = (INS + 127) // 128
        of_block = tl.load(scale + tl.program_id(0) * ROWS // 128 * blocks + depth // 128, depth < INS, 0.0)
    if EARLY:
        cuda.gdc_wait()
    for token in tl.static_range(T):
        value = tl.load(x + token * x_token + group * x_group + depth, depth < INS, 0.0).to(tl.float32)
        if FORMAT == "fp8_block":
            value *= of_block
        total = tl.sum(weight * value[None, :], 1)
        if FORMAT == "int8":
            total *= tl.load(scale + row, there, 0.0)
        if BIASED:
            total += tl.load(bias + row, there, 0.0).to(tl.float32)
        tl.store(y + token * y_token + group * y_group + row, total, there)


@triton.jit
def _tiles(
    x, x_token, x_group, w, scale, bias, y, y_token, y_group, partials, arrivals, T, outs, INS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
    FORMAT: tl.constexpr, BIASED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    cut, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = cut * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    there = row < outs
    steps: tl.constexpr = (INS + PARTS * DEPTH - 1) // (PARTS * DEPTH)
    if EARLY:
        cuda.gdc_launch_dependents()
        if steps > 1:
            cuda.gdc_wait()
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        depth = (part * steps + step) * DEPTH + tl.arange(0, DEPTH)
        inside = depth < INS
        weight = tl.load(
            w + (group * outs + row)[:, None] * INS + depth[None, :], there[:, None] & inside[None, :], 0.0
        )
        if EARLY and steps == 1:
            cuda.gdc_wait()
        value = tl.load(
            x + token[None, :] * x_token + group * x_group + depth[:, None],
            inside[:, None] & (token < T)[None, :],
            0.0,
        )
        if FORMAT == "int8":
            weight = weight.to(tl.float32)
        if FORMAT == "fp8_block":
            blocks: tl.constexpr = (INS + 127) // 128
            of_block = tl.load(scale + cut * ROWS // 128 * blocks + (part * steps + step) * DEPTH // 128)
            total += tl.dot(weight.to(value.dtype), value, input_precision="ieee") * of_block
        else:
            total = tl.dot(weight.to(value.dtype), value, total, input_precision="ieee")
    last = True
    if PARTS > 1:
        tile = group * tl.num_programs(0) + cut
        size: tl.constexpr = ROWS * TOKENS
        mine = partials + tile * (PARTS * size) + tl.arange(0, ROWS)[:, None] * TOKENS + token[None, :]
        tl.store(mine + part * size, total)
        tl.debug_barrier()
        last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == PARTS - 1
        if last:
            total = tl.zeros((ROWS, TOKENS), tl.float32)
            for other in tl.static_range(PARTS):
                total += tl.load(mine + other * size, cache_modifier=".cg")
            tl.store(arrivals + tile, 0)
    if last:
        if FORMAT == "int8":
            total *= tl.load(scale + row, there, 0.0)[:, None]
        if BIASED:
            total += tl.load(bias + row, there, 0.0).to(tl.float32)[:, None]
        to = y + token.to(tl.int64)[None, :] * y_token + group * y_group + row[:, None]
        tl.store(to, total, there[:, None] & (token < T)[None, :])


@dataclass(frozen=True, slots=True)
class Weight:
    """Matrices [G, O, I], their scales and bias where they have any, and the format they are in."""

    matrices: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    format: str = "native"


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one product is cut: rows of a block, depth of a step, blocks that share a tile's depth.

    Depth 0 is the form `few`, which takes the whole depth at once.
    """

    rows: int
    depth: int = 0
    parts: int = 1
    stages: int = 1
    warps: int = 4


def multiply(x: Tensor, w: Weight, y: Tensor, tiling: Tiling) -> Tensor:
    """Write x W^T + b into y [T, G, O] and return it."""
    if len(x):
        (_run_tiles if tiling.depth else _run_few)(x, w, y, tiling, early(x.device))
    return y


def _run_few(x: Tensor, w: Weight, y: Tensor, tiling: Tiling, ahead: bool) -> None:
    groups, outputs, inputs = w.matrices.shape
    _few[(triton.cdiv(outputs, tiling.rows), groups)](
        x, x.stride(0), x.stride(1), w.matrices, w.scale, w.bias, y, y.stride(0), y.stride(1), outputs, inputs,
        x.shape[0], tiling.rows, triton.next_power_of_2(inputs), w.format, w.bias is not None, ahead,
        num_warps=tiling.warps, launch_pdl=ahead,
    )  # fmt: skip


def _run_tiles(x: Tensor, w: Weight, y: Tensor, tiling: Tiling, ahead: bool) -> None:
    groups, outputs, inputs = w.matrices.shape
    tokens = max(TOKENS_LEAST, triton.next_power_of_2(x.shape[0]))
    cuts, parts = triton.cdiv(outputs, tiling.rows), tiling.parts
    partials = None
    if parts > 1:
        partials = torch.empty(
            (groups * cuts, parts, tiling.rows, tokens), dtype=torch.float32, device=x.device
        )
    _tiles[(cuts, parts, groups)](
        x, x.stride(0), x.stride(1), w.matrices, w.scale, w.bias, y, y.stride(0), y.stride(1), partials,
        counters(x.device), x.shape[0], outputs, inputs, tokens, tiling.rows, tiling.depth, parts,
        tiling.stages, w.format, w.bias is not None, ahead, num_warps=tiling.warps, launch_pdl=ahead,
    )  # fmt: skip
