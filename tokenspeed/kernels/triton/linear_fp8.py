# SPDX-License-Identifier: MIT
"""`linear.dense` with block-scaled 8-bit weights: half the bytes of 16 bits, and about half the time for few tokens.

In: weights [O, I] e4m3 with a float32 scale per 128 x 128, activations every step. Out: new tensors or `out`. Only
activations are rounded, to float16 (e4m3 becomes float16 by one instruction a pair). Three regimes by tokens:

    1, 2      `stream`'s rows in registers, no matrix unit; twice the rows of 16 bits, so that as many bytes are
              under way
    .. 64     `_tiles`: 16 or 32 tokens are the short side of `mma.sync`, whose operands come from registers, so a
              weight goes there as 8 bits and is converted there; 64 are two such products of one converted weight
    more      one pass restores the weight in the activations' dtype, then the vendor's product: the pass moves
              three bytes a number, the product of 8192 tokens takes thirty times as long

Blocks that share a tile's depth add up in their order, the last to arrive: runs are identical. Where a block's whole
share fits in registers, it is asked for before the kernel that makes x is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import AtLeast, MultipleOf, Needs, Traits
from tokenspeed.kernels.ref.dense import FP8_BLOCK, quantise_fp8_block
from tokenspeed.kernels.spec import Band, Implementation, Kernel
from tokenspeed.kernels.triton.launch import early, power_of_2
from tokenspeed.kernels.triton.stream import Tiling, Weight, multiply
from tokenspeed.kernels.workspace import counters

FEW_TOKENS_MAX = 2
FEW_ELEMENTS = 16384
"""Of a weight, that a block of four warps holds in registers: 16 KiB in flight."""
FEW_DEPTH_MAX = 8192
"""Deeper rows are cheaper on the matrix unit (11264 deep: 15.9 us, and 14.7)."""
TOKENS_MAX = 64
AT_ONCE = 4
"""Steps of 128 channels that a block asks for in one go: 32 KiB of 64 rows."""


@triton.jit
def _values(x, x_token, token, T, depth, INS: tl.constexpr):
    inside = (token < T)[:, None] & (depth < INS)[None, :]
    return tl.load(x + token[:, None] * x_token + depth[None, :], inside, 0.0)


@triton.jit
def _add(total, value, weight, of_block):
    return total + tl.dot(value.to(tl.float16), weight) * of_block


@triton.jit
def _tiles(
    x, x_token, w, scale, bias, y, y_token, partials, arrivals, T, outs, INS: tl.constexpr,
    TOKENS: tl.constexpr, PAIR: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, PARTS: tl.constexpr,
    ONCE: tl.constexpr, STAGES: tl.constexpr, BIASED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS] of y^T for TOKENS tokens, twice as many with PAIR, over a part's STEPS steps of 128 channels."""
    cut, part = tl.program_id(0), tl.program_id(1)
    row = cut * ROWS + tl.arange(0, ROWS)
    there = row < outs
    token = tl.arange(0, TOKENS)
    depth = part * STEPS * 128 + tl.arange(0, 128)
    at = w + row[:, None].to(tl.int64) * INS + depth[None, :]
    of_block = scale + cut * ROWS // 128 * ((INS + 127) // 128) + part * STEPS
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    other = tl.zeros((TOKENS, ROWS), tl.float32)
    if EARLY:
        cuda.gdc_launch_dependents()
    if ONCE:
        first = tl.load(at, there[:, None] & (depth < INS)[None, :], 0.0)
        if STEPS > 1:
            second = tl.load(at + 128, there[:, None] & (depth + 128 < INS)[None, :], 0.0)
        if STEPS > 2:
            third = tl.load(at + 256, there[:, None] & (depth + 256 < INS)[None, :], 0.0)
            fourth = tl.load(at + 384, there[:, None] & (depth + 384 < INS)[None, :], 0.0)
    if EARLY:
        cuda.gdc_wait()
    if ONCE:
        value = _values(x, x_token, token, T, depth, INS)
        if STEPS > 1:
            value_1 = _values(x, x_token, token, T, depth + 128, INS)
        if STEPS > 2:
            value_2 = _values(x, x_token, token, T, depth + 256, INS)
            value_3 = _values(x, x_token, token, T, depth + 384, INS)
        left = (INS + 127) // 128 - part * STEPS
        total = _add(total, value, tl.trans(first.to(tl.float16)), tl.load(of_block))
        if STEPS > 1:
            by = tl.load(of_block + 1, left > 1, 0.0)
            total = _add(total, value_1, tl.trans(second.to(tl.float16)), by)
        if STEPS > 2:
            by = tl.load(of_block + 2, left > 2, 0.0)
            total = _add(total, value_2, tl.trans(third.to(tl.float16)), by)
            by = tl.load(of_block + 3, left > 3, 0.0)
            total = _add(total, value_3, tl.trans(fourth.to(tl.float16)), by)
    else:
        for step in tl.range(0, STEPS, num_stages=STAGES):
            inside = depth + step * 128 < INS
            loaded = tl.load(at + step * 128, there[:, None] & inside[None, :], 0.0)
            weight = tl.trans(loaded.to(tl.float16))
            by = tl.load(of_block + step, part * STEPS + step < (INS + 127) // 128, 0.0)
            total = _add(total, _values(x, x_token, token, T, depth + step * 128, INS), weight, by)
            if PAIR:
                value = _values(x, x_token, token + TOKENS, T, depth + step * 128, INS)
                other = _add(other, value, weight, by)
    last = True
    if PARTS > 1:
        size: tl.constexpr = ROWS * TOKENS * (2 if PAIR else 1)
        mine = partials + cut * (PARTS * size) + token[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        tl.store(mine + part * size, total)
        if PAIR:
            tl.store(mine + part * size + ROWS * TOKENS, other)
        tl.debug_barrier()
        last = tl.atomic_add(arrivals + cut, 1, sem="acq_rel") == PARTS - 1
        if last:
            total = tl.zeros((TOKENS, ROWS), tl.float32)
            other = tl.zeros((TOKENS, ROWS), tl.float32)
            for share in tl.static_range(PARTS):
                total += tl.load(mine + share * size, cache_modifier=".cg")
                if PAIR:
                    other += tl.load(mine + share * size + ROWS * TOKENS, cache_modifier=".cg")
            tl.store(arrivals + cut, 0)
    if last:
        if BIASED:
            addend = tl.load(bias + row, there, 0.0).to(tl.float32)[None, :]
            total += addend
            other += addend
        to = y + token.to(tl.int64)[:, None] * y_token + row[None, :]
        tl.store(to, total, (token < T)[:, None] & there[None, :])
        if PAIR:
            tl.store(to + TOKENS * y_token, other, (token + TOKENS < T)[:, None] & there[None, :])


@triton.jit
def _restore(w, scale, out, outs, INS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Write a tile of the weight as numbers of `out`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = (row < outs)[:, None] & (depth < INS)[None, :]
    at = row.to(tl.int64)[:, None] * INS + depth[None, :]
    by = tl.load(scale + row[:, None] // 128 * ((INS + 127) // 128) + depth[None, :] // 128, inside, 0.0)
    value = tl.load(w + at, inside, 0.0).to(tl.float32) * by
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@dataclass(frozen=True, slots=True)
class Cut:
    """How `_tiles` cuts a product: rows of a block, steps of 128 channels of a part, parts."""

    rows: int
    steps: int
    parts: int
    once: bool
    stages: int
    warps: int


def cut_of(outputs: int, inputs: int, tokens: int, cores: int) -> Cut:
    """Blocks that take their share in one go, if that fills the device about once; else a stream.

    Measured on an H200 (docs/log/0009): 128 rows up to 16 tokens, 64 or 32 above, 512 deep.
    """
    steps = -(-inputs // FP8_BLOCK)
    parts = -(-steps // AT_ONCE)
    for rows in (128, 64, 32):
        launched = -(-outputs // rows) * parts
        fits = tokens <= 16 or (tokens <= 32 and rows < 128)
        if fits and cores <= 3 * launched <= 6 * cores:
            return Cut(rows, AT_ONCE, parts, once=True, stages=1, warps=4)
    rows = 64 if -(-outputs // 64) * steps >= 4 * cores else 32
    blocks, parts = -(-outputs // rows), 1
    while blocks * parts < cores and 4 * parts <= steps:
        parts *= 2
    return Cut(rows, -(-steps // parts), parts, once=False, stages=4, warps=4)


def few_of(outputs: int, inputs: int, cores: int) -> Tiling:
    """Rows of a block that holds them whole."""
    rows = max(1, FEW_ELEMENTS // power_of_2(inputs))
    while rows > 1 and outputs < 2 * cores * rows:
        rows //= 2
    return Tiling(rows, warps=4 if rows * power_of_2(inputs) < FEW_ELEMENTS or inputs <= 8192 else 8)


class Dense:
    """x W^T + b for one weight's traits: cut as it was when the layer was built, by the number of tokens."""

    __slots__ = ("_cuts", "_dtype", "_few")

    def __init__(self, traits: Traits, device: Device) -> None:
        outputs, inputs = traits["out_dim"], traits["in_dim"]
        assert isinstance(outputs, int)
        assert isinstance(inputs, int)
        self._dtype = torch.float32 if traits["float32_out"] else None
        self._few = few_of(outputs, inputs, device.cores) if inputs <= FEW_DEPTH_MAX else None
        self._cuts = {tokens: cut_of(outputs, inputs, tokens, device.cores) for tokens in (16, 32, 64)}

    def prepare(self, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Weight:
        """Keep the weight [O, I], its bias and its scales; round it where it is not in 8 bits yet."""
        if scale is None:
            weight, scale = quantise_fp8_block(weight)
        return Weight(weight.contiguous()[None], scale.contiguous(), bias, "fp8_block")

    def __call__(self, x: Tensor, w: Weight, *, out: Tensor | None = None) -> Tensor:
        """Return x W^T + b."""
        tokens = x.shape[0]
        y = x.new_empty((tokens, w.matrices.shape[1]), dtype=self._dtype) if out is None else out
        if not tokens:
            return y
        if tokens <= FEW_TOKENS_MAX and self._few is not None:
            multiply(x[:, None], w, y[:, None], self._few)
            return y
        if tokens <= TOKENS_MAX:
            width = max(16, power_of_2(tokens))
            return run_tiles(x, w, y, self._cuts[width], width)
        return self._many(x, w, y)

    def _many(self, x: Tensor, w: Weight, y: Tensor) -> Tensor:
        weight = restore(w, x.dtype)
        if y.dtype is x.dtype:
            return torch.mm(x, weight.T, out=y) if w.bias is None else torch.addmm(w.bias, x, weight.T, out=y)
        if x.is_cuda:
            torch.mm(x, weight.T, out_dtype=y.dtype, out=y)
        else:  # under the interpreter
            torch.mm(x.to(y.dtype), weight.T.to(y.dtype), out=y)
        return y if w.bias is None else y.add_(w.bias)


def run_tiles(x: Tensor, w: Weight, y: Tensor, cut: Cut, tokens: int) -> Tensor:
    """Write x W^T + b into y for up to `tokens` (16, 32, 64) tokens."""
    _, outputs, inputs = w.matrices.shape
    blocks, ahead = triton.cdiv(outputs, cut.rows), early(x.device)
    partials = None
    if cut.parts > 1:
        partials = torch.empty((blocks, cut.parts, tokens, cut.rows), dtype=torch.float32, device=x.device)
    _tiles[(blocks, cut.parts)](
        x, x.stride(0), w.matrices, w.scale, w.bias, y, y.stride(0), partials, counters(x.device), x.shape[0],
        outputs, inputs, min(tokens, 32), tokens > 32, cut.rows, cut.steps, cut.parts, cut.once, cut.stages,
        w.bias is not None, ahead, num_warps=cut.warps, launch_pdl=ahead,
    )  # fmt: skip
    return y


def restore(w: Weight, dtype: torch.dtype) -> Tensor:
    """The weight [O, I] as numbers of `dtype`, in one pass."""
    _, outputs, inputs = w.matrices.shape
    weight = torch.empty((outputs, inputs), dtype=dtype, device=w.matrices.device)
    grid = (triton.cdiv(outputs, 32), triton.cdiv(inputs, 256))
    _restore[grid](w.matrices, w.scale, weight, outputs, inputs, 32, 256, num_warps=4)
    return weight


def build_dense(traits: Traits, device: Device) -> Implementation:
    """Build `linear.dense`."""
    dense = Dense(traits, device)
    return Implementation(dense, dense.prepare)


_NEEDS = Needs(
    sm=AtLeast((8, 9)),
    dtype={torch.bfloat16, torch.float16},
    format="fp8_block",
    in_dim=MultipleOf(16),
)

KERNELS = (Kernel("linear.dense", "triton_fp8_half", _NEEDS, Band.TUNED, build_dense),)
