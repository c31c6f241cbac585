# SPDX-License-Identifier: MIT
"""Op `attention.mla_decode` in one launch on any GPU: split over the context, merged by the last to arrive.

In: a few query tokens a row, the paged latent arena, lengths and tables on the device. Out: [T, H, L] and, if
asked, the log-sums [T, H]. The new tokens of a row times its heads are folded into the rows of one matrix
product, M at a time: a row block. The grid is lanes x row blocks and depends on shapes alone; each lane counts
the key tiles of all rows and takes an equal run of them, so ragged batches balance, a row of context 0 costs
nothing and a captured graph replays with any lengths.

    tiles   | row 0          | row 1 | row 2                    | ...
    lanes   |------ 0 ------|------ 1 ------|------ 2 ------|------ 3 ------| ...

A lane that holds the whole of a row writes its result. A row that is cut leaves partial sums in a workspace,
two places a lane, for at most one row is open at either end of its run; the last lane to arrive at the
counter of (row, row block) adds them up and puts the counter back to zero.

The latent is read once for both products: transposed as key, as it lies as value. Nothing here is particular
to a chip; `hopper.mla_decode` is what runs on one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenspeed.kernels.api.traits import BF16, FP32, dtype_of, whole
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.fp8 import Latents
from tokenspeed.kernels.needs import AtLeast, MultipleOf, Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel
from tokenspeed.kernels.workspace import COUNTERS, counters

LOG2_E = 1.4426950408889634
TILES_LEAST = 4
"""A run of fewer tiles costs more to merge than it saves."""
NEVER = tl.constexpr(-1e30)
"""The running maximum starts here: finite, so that a tile without a visible key leaves no NaN."""


@triton.jit
def _decode(
    q_latent,
    q_rope,
    arena,
    ropes,
    scales,
    block_table,
    context_lens,
    row_starts,
    out,
    lse,
    sums,
    stats,
    counts,
    rows,
    scale_log2,
    latent_token,
    latent_head,
    rope_token,
    rope_head,
    table_row,
    EACH: tl.constexpr,
    HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    L: tl.constexpr,
    R: tl.constexpr,
    TILE: tl.constexpr,
    LEAST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    lane, lanes = tl.program_id(0), tl.num_programs(0)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    m, d, r = tl.arange(0, M), tl.arange(0, L), tl.arange(0, R)
    row_at = tl.arange(0, ROWS)
    lens = tl.load(context_lens + row_at, mask=row_at < rows, other=0)
    tiles = tl.cdiv(lens, TILE)
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    # One program adds up all partials of a row: its time grows with their number as that of the runs falls.
    rooted = (tl.sqrt(tl.max(tiles, 0).to(tl.float32)) * 0.6).to(tl.int32)
    share = tl.maximum(tl.maximum(tl.cdiv(total, lanes), rooted), LEAST)
    _clear_empty(context_lens, row_starts, out, lse, lane, lanes, block, rows, EACH, HEADS, LATENT, M, L)
    at = lane * share
    stop = tl.minimum(at + share, total)
    while at < stop:
        row = tl.sum((ends <= at).to(tl.int32), 0)
        row_end = tl.sum(tl.where(row_at == row, ends, 0), 0)
        context = tl.load(context_lens + row)
        row_begin = row_end - tl.cdiv(context, TILE)
        end = tl.minimum(stop, row_end)
        first_token, tokens = _tokens_of(row_starts, row, EACH)
        folded = block * M + m
        valid = folded < tokens * HEADS
        if block * M < tokens * HEADS:
            token, head = folded // HEADS, folded % HEADS
            sees = context - tokens + 1 + token
            at_latent = (first_token + token).to(tl.int64) * latent_token + head * latent_head
            at_rope = (first_token + token).to(tl.int64) * rope_token + head * rope_head
            whole_q = valid[:, None] & (d < LATENT)[None, :]
            q = tl.load(q_latent + at_latent[:, None] + d[None, :], mask=whole_q, other=0.0)
            rope_q = valid[:, None] & (r < ROPE)[None, :]
            qr = tl.load(q_rope + at_rope[:, None] + r[None, :], mask=rope_q, other=0.0)
            table = block_table + row.to(tl.int64) * table_row
            peak, total_p, acc = _attend(
                q, qr, arena, ropes, scales, table, at - row_begin, end - row_begin, context, sees, scale_log2,
                LATENT, ROPE, BLOCK_TOKENS, M, L, R, TILE, STAGES, PRECISION,
            )  # fmt: skip
            first_lane, last_lane = row_begin // share, (row_end - 1) // share
            place = first_token * HEADS + folded
            if first_lane == last_lane:
                _store(out, lse, place, valid, peak, total_p, acc, LATENT, L)
            else:
                slot = (2 * lane + (lane == first_lane).to(tl.int32)) * blocks + block
                tl.store(stats + slot * 2 * M + m, peak)
                tl.store(stats + slot * 2 * M + M + m, total_p)
                partial_at = slot.to(tl.int64) * M * L + m[:, None] * L + d[None, :]
                tl.store(sums + partial_at, acc, mask=valid[:, None])
                tl.debug_barrier()
                counter = counts + row * blocks + block
                arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                if arrived == last_lane - first_lane:
                    peak, total_p, acc = _merge(
                        sums, stats, first_lane, last_lane, block, blocks, valid, M, L
                    )
                    _store(out, lse, place, valid, peak, total_p, acc, LATENT, L)
                    tl.store(counter, 0)
        at = end


@triton.jit
def _tokens_of(row_starts, row, EACH: tl.constexpr):
    """First token of a row and how many it has: equally many where nothing says otherwise."""
    if row_starts is None:
        first = row * EACH
        tokens = tl.full((), EACH, tl.int32)
    else:
        first = tl.load(row_starts + row)
        tokens = tl.load(row_starts + row + 1) - first
    return first, tokens


@triton.jit
def _clear_empty(
    context_lens,
    row_starts,
    out,
    lse,
    lane,
    lanes,
    block,
    rows,
    EACH: tl.constexpr,
    HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    M: tl.constexpr,
    L: tl.constexpr,
):
    """Write zeros where no context is: lanes share the rows."""
    m = tl.arange(0, M)
    row = lane
    while row < rows:
        if tl.load(context_lens + row) == 0:
            first, tokens = _tokens_of(row_starts, row, EACH)
            folded = block * M + m
            valid = folded < tokens * HEADS
            place = first * HEADS + folded
            _store(
                out, lse, place, valid, tl.full((M,), -float("inf"), tl.float32),
                tl.zeros((M,), tl.float32), tl.zeros((M, L), tl.float32), LATENT, L,
            )  # fmt: skip
        row += lanes


@triton.jit
def _attend(
    q,
    qr,
    arena,
    ropes,
    scales,
    table,
    begin,
    end,
    context,
    sees,
    scale_log2,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    M: tl.constexpr,
    L: tl.constexpr,
    R: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax statistics (base 2) and unnormalised sums of M folded rows over tiles [begin, end)."""
    n, d, r = tl.arange(0, TILE), tl.arange(0, L), tl.arange(0, R)
    width = LATENT + ROPE
    peak = tl.full((M,), NEVER, tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, L), tl.float32)
    for tile in tl.range(begin, end, num_stages=STAGES):
        first = tile * TILE
        page = tl.load(table + first // BLOCK_TOKENS).to(tl.int64)
        source = arena + (page * BLOCK_TOKENS + first % BLOCK_TOKENS) * width
        there = (first + n < context)[:, None]
        if scales is None:
            kv = tl.load(
                source + n[:, None] * width + d[None, :], mask=there & (d < LATENT)[None, :], other=0.0
            )
            kr = tl.load(
                source + n[:, None] * width + LATENT + r[None, :], mask=there & (r < ROPE)[None, :], other=0.0
            )
        else:
            token = page * BLOCK_TOKENS + first % BLOCK_TOKENS + n
            kv = tl.load(arena + token[:, None] * LATENT + d[None, :], there & (d < LATENT)[None, :], 0.0)
            kv = kv.to(q.dtype)
            scale = tl.load(scales + token, first + n < context, 1.0)
            kr = tl.load(ropes + token[:, None] * ROPE + r[None, :], there & (r < ROPE)[None, :], 0.0)
        scores = tl.dot(q, tl.trans(kv), input_precision=PRECISION)
        if scales is not None:
            scores *= scale[None, :]
        scores = tl.dot(qr, tl.trans(kr), scores, input_precision=PRECISION) * scale_log2
        if scales is not None:  # as a factor of the values, in the exponent: weights stay in [0, 1]
            scores += tl.log2(scale)[None, :]
        scores = tl.where((first + n)[None, :] < sees[:, None], scores, -float("inf"))
        grown = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp2(peak - grown)
        p = tl.exp2(scores - grown[:, None])
        if scales is None:
            total = total * shrink + tl.sum(p, 1)
        else:
            total = total * shrink + tl.sum(p / scale[None, :], 1)
        acc = tl.dot(p.to(kv.dtype), kv, acc * shrink[:, None], input_precision=PRECISION)
        peak = grown
    return peak, total, acc


@triton.jit
def _merge(sums, stats, first_lane, last_lane, block, blocks, valid, M: tl.constexpr, L: tl.constexpr):
    """Add up what lanes first..last left of one (row, row block)."""
    m, d = tl.arange(0, M), tl.arange(0, L)
    peak = tl.full((M,), NEVER, tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, L), tl.float32)
    lane = first_lane
    while lane <= last_lane:
        slot = (2 * lane + (lane == first_lane).to(tl.int32)) * blocks + block
        its_peak = tl.load(stats + slot * 2 * M + m)
        its_total = tl.load(stats + slot * 2 * M + M + m)
        partial_at = slot.to(tl.int64) * M * L + m[:, None] * L + d[None, :]
        its_acc = tl.load(sums + partial_at, mask=valid[:, None], other=0.0)
        grown = tl.maximum(peak, its_peak)
        mine, theirs = tl.exp2(peak - grown), tl.exp2(its_peak - grown)
        total = total * mine + its_total * theirs
        acc = acc * mine[:, None] + its_acc * theirs[:, None]
        peak = grown
        lane += 1
    return peak, total, acc


@triton.jit
def _store(out, lse, place, valid, peak, total, acc, LATENT: tl.constexpr, L: tl.constexpr):
    """Divide by the softmax sum and write the folded rows; a row that saw no key is zero."""
    d = tl.arange(0, L)
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    result = acc / total[:, None]
    whole = valid[:, None] & (d < LATENT)[None, :]
    tl.store(out + place[:, None] * LATENT + d[None, :], result.to(out.dtype.element_ty), mask=whole)
    if lse is not None:
        log_sum = tl.where(seen, (peak + tl.log2(total)) * 0.6931471805599453, -float("inf"))
        tl.store(lse + place, log_sum, mask=valid)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Shapes of the program: `m` folded rows by `tile` keys."""

    m: int
    tile: int
    warps: int
    stages: int

    @classmethod
    def of(cls, traits: Traits, rows: int) -> Tuning:
        """Take up to 64 folded rows at once in 16 bit; what is wider does not fit the shared memory."""
        block_tokens = whole(traits, "block_tokens")
        if dtype_of(traits).itemsize > 2:
            return cls(16, min(16, block_tokens), 4, 1)
        m = min(64, max(16, triton.next_power_of_2(rows)))
        return cls(m, min(32, block_tokens), 8, 5 if m == 16 else 3)


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    arena: Tensor | Latents,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    row_starts: Tensor | None = None,
    row_tokens_max: int | None = None,
    lse: Tensor | None = None,
    schedule: object = None,
    out: Tensor | None = None,
    traits: Traits,
    programs: int,
) -> Tensor:
    """Attend in the latent space in one launch of about `programs` programs."""
    del schedule  # every program makes its own
    tokens, heads, latent = q_latent.shape
    rope, rows = q_rope.shape[2], context_lens.shape[0]
    if out is None:
        out = torch.empty((tokens, heads, latent), dtype=q_latent.dtype, device=q_latent.device)
    if not tokens:
        return out
    each = tokens // rows
    folded = (each if row_starts is None else row_tokens_max or tokens) * heads
    tuning = Tuning.of(traits, folded)
    blocks = -(-folded // tuning.m)
    lanes = max(1, programs // blocks)
    wide = triton.next_power_of_2(latent)
    if rows * blocks > COUNTERS:
        raise ValueError(f"{rows} rows in {blocks} row blocks exceed {COUNTERS} counters")
    places = 2 * lanes * blocks * tuning.m
    sums = torch.empty((places, wide), dtype=FP32, device=out.device)
    stats = torch.empty((places, 2), dtype=FP32, device=out.device)
    values, ropes, scales = arena if isinstance(arena, Latents) else (arena, None, None)
    _decode[(lanes, blocks)](
        q_latent, q_rope, values, ropes, scales, block_table, context_lens, row_starts, out, lse, sums, stats,
        counters(out.device), rows, scale * LOG2_E, q_latent.stride(0), q_latent.stride(1),
        q_rope.stride(0), q_rope.stride(1), block_table.stride(0),
        EACH=each, HEADS=heads, LATENT=latent, ROPE=rope, BLOCK_TOKENS=values.shape[1],
        ROWS=triton.next_power_of_2(rows), M=tuning.m, L=wide, R=triton.next_power_of_2(rope),
        TILE=tuning.tile, LEAST=TILES_LEAST, STAGES=tuning.stages,
        PRECISION="ieee" if out.dtype is FP32 else None,
        num_warps=tuning.warps,
    )  # fmt: skip
    return out


def _build(traits: Traits, device: Device) -> Implementation:
    programs = device.cores or 1
    return Implementation(partial(mla_decode, traits=traits, programs=programs))


def _kernel(name: str, sm: tuple[int, int], kv: str) -> Kernel:
    needs = Needs(
        device="cuda",
        sm=AtLeast(sm),
        dtype={BF16, torch.float16, FP32},
        latent=MultipleOf(16),
        rope=MultipleOf(16),
        block_tokens={16, 32, 64, 128},
        kv=kv,
    )
    return Kernel("attention.mla_decode", name, needs, Band.FAST, _build)


KERNELS: tuple[Kernel, ...] = (
    _kernel("triton", (8, 0), "native"),
    _kernel("triton_fp8", (8, 9), "fp8"),
)

__all__ = ["KERNELS", "Tuning", "mla_decode"]
