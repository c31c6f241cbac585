# SPDX-License-Identifier: MIT
"""Op `attention.mla_decode` on Hopper: one launch, warp-specialised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tokenspeed.kernels.api.traits import BF16, whole
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel
from tokenspeed.kernels.workspace import COUNTERS, counters

LOG2_E = 1.4426950408889634
FOLDED = 64
"""Folded rows (new tokens x heads) of a row block: the M of a warpgroup's product."""
STAGES = 2
TILES_LEAST = 1
LN_2 = gl.constexpr(0.6931471805599453)
NEVER = gl.constexpr(-1e30)
TILE = gl.constexpr(64)
SHARED = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
RECORD = 8


@triton.jit
def _schedule(context_lens, records, rows, lanes, least, ROWS: tl.constexpr, LANES: tl.constexpr):
    """A record a lane: first row, first tile in it, tiles in all; then the tiles and lanes of the whole."""
    row_at, lane = tl.arange(0, ROWS), tl.arange(0, LANES)
    lens = tl.load(context_lens + row_at, mask=row_at < rows, other=0)
    tiles = tl.cdiv(lens, 64)
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    used = tl.minimum(tl.maximum(total // least, 1), lanes)
    at = tl.minimum(lane, used) * total // used
    left = tl.minimum(lane + 1, used) * total // used - at
    before = ends[:, None] <= at[None, :]
    row = tl.sum(before.to(tl.int32), 0)
    row_begin = tl.max(tl.where(before, ends[:, None], 0), 0)
    place, there = records + lane * 8, lane < lanes
    tl.store(place, row, mask=there)
    tl.store(place + 1, at - row_begin, mask=there)
    tl.store(place + 2, left, mask=there)
    tl.store(place + 3, tl.zeros((LANES,), tl.int32) + total, mask=there)
    tl.store(place + 4, tl.zeros((LANES,), tl.int32) + used, mask=there)


@gluon.jit
def _tokens_of(row_starts, row, EACH: gl.constexpr):
    if row_starts is None:
        first = row * EACH
        tokens = gl.to_tensor(EACH)
    else:
        first = gl.load(row_starts + row)
        tokens = gl.load(row_starts + row + 1) - first
    return first, tokens


@gluon.jit
def _load(
    latents, ropes, kv, kr, full, empty, block_table, context_lens, row_starts, table_row,
    row, begin, left, block,
    EACH: gl.constexpr, HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr,
):  # fmt: skip
    step = 0
    while left > 0:
        context = gl.load(context_lens + row)
        count = gl.minimum((context + TILE - 1) // TILE - begin, left)
        first, tokens = _tokens_of(row_starts, row, EACH)
        if block * M < tokens * HEADS:
            table = block_table + row.to(gl.int64) * table_row + begin
            for i in range(count):
                page = gl.load(table + i)
                stage = step % STAGES
                mbarrier.wait(empty.index(stage), (step // STAGES + 1) & 1)
                mbarrier.expect(full.index(stage), TILE * (512 + 64) * 2)
                tma.async_copy_global_to_shared(latents, [page * TILE, 0], full.index(stage), kv.index(stage))
                tma.async_copy_global_to_shared(ropes, [page * TILE, 512], full.index(stage), kr.index(stage))
                step += 1
        left -= count
        row += 1
        begin = 0


@gluon.jit
def _lane_of(tile, total, lanes):
    """The lane that holds a tile: lane l holds [l * total // lanes, (l + 1) * total // lanes)."""
    return ((tile + 1) * lanes - 1) // total


@gluon.jit
def _store_half(
    out, sums, acc, inverse, slot, shared, first, folded, valid, block, blocks, at_column,
    HEADS: gl.constexpr, M: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    acc = acc * inverse[:, None]
    d = at_column + gl.arange(0, 256, layout=gl.SliceLayout(0, layout))
    if shared:
        m = gl.arange(0, M, layout=gl.SliceLayout(1, layout))
        place = (slot * blocks + block).to(gl.int64) * (M * 512) + m[:, None] * 512 + d[None, :]
        gl.store(sums + place, acc, mask=valid[:, None])
    else:
        place = (first * HEADS + folded).to(gl.int64)[:, None] * 512 + d[None, :]
        gl.store(out + place, acc.to(out.dtype.element_ty), mask=valid[:, None])


@gluon.jit
def _left(
    q_latent, q_rope, out, lse, sums, stats, ql, qr, kv, kr, p_shared, fade, full, empty, p_ready, p_free,
    context_lens, row_starts, latent_token, latent_head, rope_token, rope_head, scale_log2,
    lane, row, begin, left, total_tiles, lanes, block, blocks,
    EACH: gl.constexpr, HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    rows_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    q_layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    step = 0
    rounds = 0
    at = lane * total_tiles // lanes
    while left > 0:
        context = gl.load(context_lens + row)
        tiles = (context + TILE - 1) // TILE
        count = gl.minimum(tiles - begin, left)
        first, tokens = _tokens_of(row_starts, row, EACH)
        if (block * M < tokens * HEADS) & (count > 0):
            qm = block * M + gl.arange(0, M, layout=gl.SliceLayout(1, q_layout))
            qd = gl.arange(0, 64, layout=gl.SliceLayout(0, q_layout))
            there = (qm < tokens * HEADS)[:, None]
            token = (first + qm // HEADS).to(gl.int64)
            source = q_latent + (token * latent_token + (qm % HEADS) * latent_head)[:, None] + qd[None, :]
            for c in gl.static_range(8):
                ql.slice(c * 64, 64, dim=1).store(gl.load(source + c * 64, mask=there, other=0.0))
            source = q_rope + (token * rope_token + (qm % HEADS) * rope_head)[:, None] + qd[None, :]
            qr.store(gl.load(source, mask=there, other=0.0))
            fence_async_shared()

            folded = block * M + gl.arange(0, M, layout=rows_layout)
            valid = folded < tokens * HEADS
            sees = context - tokens + 1 + folded // HEADS
            n = gl.arange(0, TILE, layout=gl.SliceLayout(0, s_layout))
            peak = gl.full([M], NEVER, gl.float32, layout=rows_layout)
            total = gl.zeros([M], gl.float32, layout=rows_layout)
            acc = gl.zeros([M, 256], gl.float32, layout=o_layout)
            unmasked = context - tokens + 1
            for i in range(count):
                stage = step % STAGES
                mbarrier.wait(full.index(stage), (step // STAGES) & 1)
                scores = gl.zeros([M, TILE], gl.float32, layout=s_layout)
                scores = warpgroup_mma(
                    ql, kv.index(stage).permute((1, 0)), scores, use_acc=False, is_async=True
                )
                scores = warpgroup_mma(qr, kr.index(stage).permute((1, 0)), scores, is_async=True)
                scores = warpgroup_mma_wait(0, deps=[scores]) * scale_log2
                key = (begin + i) * TILE
                if key + TILE > unmasked:
                    scores = gl.where((key + n)[None, :] < sees[:, None], scores, -float("inf"))
                grown = gl.maximum(peak, gl.max(scores, 1))
                shrink = gl.exp2(peak - grown)
                p = gl.exp2(scores - grown[:, None])
                total = total * shrink + gl.sum(p, 1)
                peak = grown
                p = p.to(kv.dtype)
                mbarrier.wait(p_free, (rounds + 1) & 1)
                p_shared.store(p)
                fade.store(shrink)
                fence_async_shared()
                mbarrier.arrive(p_ready)
                rounds += 1
                acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, o_layout))[:, None]
                acc = warpgroup_mma(
                    gl.convert_layout(p, p_layout), kv.index(stage).slice(0, 256, dim=1), acc, is_async=True
                )
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(empty.index(stage))
                step += 1
            seen = total > 0
            inverse = 1.0 / gl.where(seen, total, 1.0)
            inverse = gl.where(seen, inverse, 0.0)
            log_sum = gl.where(seen, peak + gl.log2(total), -float("inf"))
            mbarrier.wait(p_free, (rounds + 1) & 1)
            fade.store(inverse)
            mbarrier.arrive(p_ready)
            rounds += 1
            row_begin = at - begin
            opened = _lane_of(row_begin, total_tiles, lanes)
            closed = _lane_of(row_begin + tiles - 1, total_tiles, lanes)
            slot = 2 * lane + gl.where(lane == opened, 1, 0)
            if opened < closed:
                m = gl.arange(0, M, layout=rows_layout)
                gl.store(stats + (slot * blocks + block) * M + m, log_sum, mask=valid)
            else:
                if lse is not None:
                    gl.store(lse + first * HEADS + folded, log_sum * LN_2, mask=valid)
            rows_o: gl.constexpr = gl.SliceLayout(1, o_layout)
            folded_o = block * M + gl.arange(0, M, layout=rows_o)
            _store_half(
                out, sums, acc, gl.convert_layout(inverse, rows_o), slot, opened < closed, first, folded_o,
                folded_o < tokens * HEADS, block, blocks, 0, HEADS, M, o_layout,
            )  # fmt: skip
        at += count
        left -= count
        row += 1
        begin = 0


@gluon.jit
def _right(
    out, sums, kv, p_shared, fade, full, empty, p_ready, p_free, context_lens, row_starts,
    lane, row, begin, left, total_tiles, lanes, block, blocks,
    EACH: gl.constexpr, HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr,
):  # fmt: skip
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    rows_layout: gl.constexpr = gl.SliceLayout(1, o_layout)
    step = 0
    rounds = 0
    at = lane * total_tiles // lanes
    while left > 0:
        context = gl.load(context_lens + row)
        tiles = (context + TILE - 1) // TILE
        count = gl.minimum(tiles - begin, left)
        first, tokens = _tokens_of(row_starts, row, EACH)
        if (block * M < tokens * HEADS) & (count > 0):
            acc = gl.zeros([M, 256], gl.float32, layout=o_layout)
            for _i in range(count):
                stage = step % STAGES
                mbarrier.wait(full.index(stage), (step // STAGES) & 1)
                mbarrier.wait(p_ready, rounds & 1)
                acc = acc * fade.load(rows_layout)[:, None]
                acc = warpgroup_mma(p_shared, kv.index(stage).slice(256, 256, dim=1), acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(p_free)
                mbarrier.arrive(empty.index(stage))
                rounds += 1
                step += 1
            mbarrier.wait(p_ready, rounds & 1)
            inverse = fade.load(rows_layout)
            mbarrier.arrive(p_free)
            rounds += 1
            row_begin = at - begin
            opened = _lane_of(row_begin, total_tiles, lanes)
            closed = _lane_of(row_begin + tiles - 1, total_tiles, lanes)
            slot = 2 * lane + gl.where(lane == opened, 1, 0)
            folded = block * M + gl.arange(0, M, layout=rows_layout)
            _store_half(
                out, sums, acc, inverse, slot, opened < closed, first, folded, folded < tokens * HEADS,
                block, blocks, 256, HEADS, M, o_layout,
            )  # fmt: skip
        at += count
        left -= count
        row += 1
        begin = 0


@gluon.jit
def _merge(
    out, lse, sums, stats, lane, opened, closed, first, tokens, block, blocks,
    HEADS: gl.constexpr, M: gl.constexpr, PARTS: gl.constexpr, COLUMNS: gl.constexpr,
):  # fmt: skip
    """This lane's share of one shared row: every (closed - opened + 1)-th piece of COLUMNS columns."""
    wide: gl.constexpr = 4 if COLUMNS >= 128 else 2
    across: gl.constexpr = min(32, COLUMNS // wide)
    layout: gl.constexpr = gl.BlockedLayout([1, wide], [32 // across, across], [4, 1], [1, 0])
    part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
    parts = closed - opened + 1
    per_row: gl.constexpr = 512 // COLUMNS
    rows_here = gl.minimum(tokens * HEADS - block * M, M)
    piece = lane - opened
    while piece < rows_here * per_row:
        m, column = piece // per_row, (piece % per_row) * COLUMNS
        peak = NEVER
        total = 0.0
        acc = gl.zeros([COLUMNS], gl.float32, layout=gl.SliceLayout(0, layout))
        base = 0
        while base < parts:
            index = opened + base + part
            there = index <= closed
            slot = 2 * index + gl.where(index == opened, 1, 0)
            at = slot * blocks + block
            log_sum = gl.load(stats + at * M + m, mask=there, other=-float("inf"))
            values = gl.load(
                sums + at.to(gl.int64)[:, None] * (M * 512) + m * 512 + column + d[None, :],
                mask=there[:, None], other=0.0,
            )  # fmt: skip
            grown = gl.maximum(peak, gl.max(log_sum, 0))
            weight = gl.exp2(log_sum - grown)
            mine = gl.exp2(peak - grown)
            total = total * mine + gl.sum(weight, 0)
            acc = acc * mine + gl.sum(values * weight[:, None], 0)
            peak = grown
            base += PARTS
        place = first * HEADS + block * M + m
        result = acc / gl.where(total > 0, total, 1.0)
        gl.store(out + place.to(gl.int64) * 512 + column + d, result.to(out.dtype.element_ty))
        if lse is not None:
            if column == 0:
                gl.store(lse + place, gl.where(total > 0, (peak + gl.log2(total)) * LN_2, -float("inf")))
        piece += parts


@gluon.jit
def _clear_empty(
    context_lens, row_starts, out, lse, lane, lanes, rows, block,
    EACH: gl.constexpr, HEADS: gl.constexpr, M: gl.constexpr,
):  # fmt: skip
    """Write zeros for the rows without context, which lanes share."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    m = gl.arange(0, M, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, layout))
    for row in range(lane, rows, lanes):
        if gl.load(context_lens + row) == 0:
            first, tokens = _tokens_of(row_starts, row, EACH)
            valid = block * M + m < tokens * HEADS
            place = (first * HEADS + block * M + m).to(gl.int64)
            zeros = gl.zeros([M, 512], out.dtype.element_ty, layout=layout)
            gl.store(out + place[:, None] * 512 + d[None, :], zeros, mask=valid[:, None])
            if lse is not None:
                nothing = gl.full([M], -float("inf"), gl.float32, layout=gl.SliceLayout(1, layout))
                gl.store(lse + place, nothing, mask=valid)


@gluon.jit
def _decode64(
    q_latent, q_rope, latents, ropes, block_table, context_lens, row_starts, records, out, lse, sums, stats,
    counts, rows, scale_log2, latent_token, latent_head, rope_token, rope_head, table_row,
    EACH: gl.constexpr, HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr,
):  # fmt: skip
    lane = gl.program_id(0)
    block, blocks = gl.program_id(1), gl.num_programs(1)
    record = records + lane * 8
    row = gl.load(record)
    begin = gl.load(record + 1)
    left = gl.load(record + 2)
    total_tiles = gl.load(record + 3)
    lanes = gl.load(record + 4)

    _clear_empty(
        context_lens, row_starts, out, lse, lane, gl.num_programs(0), rows, block, EACH, HEADS, M
    )
    ql = gl.allocate_shared_memory(q_latent.dtype.element_ty, [M, 512], latents.layout)
    qr = gl.allocate_shared_memory(q_latent.dtype.element_ty, [M, 64], latents.layout)
    kv = gl.allocate_shared_memory(q_latent.dtype.element_ty, [STAGES, TILE, 512], latents.layout)
    kr = gl.allocate_shared_memory(q_latent.dtype.element_ty, [STAGES, TILE, 64], latents.layout)
    p_shared = gl.allocate_shared_memory(q_latent.dtype.element_ty, [M, TILE], latents.layout)
    fade = gl.allocate_shared_memory(gl.float32, [M], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    p_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    p_free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    mbarrier.init(p_ready, count=1)
    mbarrier.init(p_free, count=1)
    fence_async_shared()

    gl.warp_specialize(
        [
            (_left, (
                q_latent, q_rope, out, lse, sums, stats, ql, qr, kv, kr, p_shared, fade, full, empty, p_ready,
                p_free, context_lens, row_starts, latent_token, latent_head, rope_token, rope_head,
                scale_log2, lane, row, begin, left, total_tiles, lanes, block, blocks, EACH, HEADS, STAGES, M,
            )),
            (_right, (
                out, sums, kv, p_shared, fade, full, empty, p_ready, p_free, context_lens, row_starts, lane,
                row, begin, left, total_tiles, lanes, block, blocks, EACH, HEADS, STAGES, M,
            )),
            (_load, (
                latents, ropes, kv, kr, full, empty, block_table, context_lens, row_starts, table_row, row,
                begin, left, block, EACH, HEADS, STAGES, M,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip

    # Tell of the partials, then share the merging of each row that was shared.
    gl.thread_barrier()
    for merging in gl.static_range(2):
        row_m, begin_m, left_m = row, begin, left
        at = lane * total_tiles // lanes
        while left_m > 0:
            context = gl.load(context_lens + row_m)
            tiles = (context + TILE - 1) // TILE
            count = gl.minimum(tiles - begin_m, left_m)
            if count < tiles:
                first, tokens = _tokens_of(row_starts, row_m, EACH)
                row_begin = at - begin_m
                opened = _lane_of(row_begin, total_tiles, lanes)
                closed = _lane_of(row_begin + tiles - 1, total_tiles, lanes)
                parts = closed - opened + 1
                if block * M < tokens * HEADS:
                    counter = counts + row_m * blocks + block
                    if merging == 0:
                        gl.atomic_add(counter, 1, sem="release", scope="gpu")
                    else:
                        while gl.atomic_add(counter, 0, sem="acquire", scope="gpu") < parts:
                            pass
                        if parts > 16:
                            _merge(out, lse, sums, stats, lane, opened, closed, first, tokens, block, blocks,
                                   HEADS, M, 128, 64)  # fmt: skip
                        else:
                            _merge(out, lse, sums, stats, lane, opened, closed, first, tokens, block, blocks,
                                   HEADS, M, 16, 512)  # fmt: skip
                        if gl.atomic_add(counter, 1, sem="relaxed", scope="gpu") == 2 * parts - 1:
                            gl.store(counter, 0)
            at += count
            left_m -= count
            row_m += 1
            begin_m = 0


@dataclass(frozen=True, slots=True)
class MLADecode:
    """The op for one layer: `heads` query heads on a GPU of `cores` multiprocessors."""

    heads: int
    cores: int
    tiles_least: int = TILES_LEAST

    def blocks(self, row_tokens_max: int) -> int:
        """Row blocks that hold the folded rows of a row of so many tokens."""
        return -(-row_tokens_max * self.heads // FOLDED)

    def schedule(self, context_lens: Tensor, row_tokens_max: int = 1) -> Tensor:
        """Give every lane its run of key tiles: [lanes, 8] int32, for all layers of a step."""
        rows = context_lens.shape[0]
        lanes = max(1, self.cores // self.blocks(row_tokens_max))
        records = torch.empty((lanes, RECORD), dtype=torch.int32, device=context_lens.device)
        _schedule[(1,)](
            context_lens, records, rows, lanes, self.tiles_least,
            ROWS=triton.next_power_of_2(rows), LANES=triton.next_power_of_2(lanes),
        )  # fmt: skip
        return records

    def __call__(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        arena: Tensor,
        block_table: Tensor,
        context_lens: Tensor,
        scale: float,
        *,
        row_starts: Tensor | None = None,
        row_tokens_max: int | None = None,
        lse: Tensor | None = None,
        schedule: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attend in the latent space; without a schedule, make one (a second launch)."""
        tokens, heads, latent = q_latent.shape
        rows = context_lens.shape[0]
        if out is None:
            out = torch.empty((tokens, heads, latent), dtype=q_latent.dtype, device=q_latent.device)
        if not tokens:
            return out
        each = tokens // rows
        tokens_max = each if row_starts is None else row_tokens_max or tokens
        if schedule is None:
            schedule = self.schedule(context_lens, tokens_max)
        lanes, blocks = schedule.shape[0], self.blocks(tokens_max)
        if rows * blocks > COUNTERS:
            raise ValueError(f"{rows} rows in {blocks} row blocks exceed {COUNTERS} counters")
        flat = arena.view(-1, arena.shape[2])
        places = 2 * lanes * blocks * FOLDED if lanes > 1 else 1
        sums = torch.empty((places, latent), dtype=torch.float32, device=out.device)
        stats = torch.empty(places, dtype=torch.float32, device=out.device)
        _decode64[(lanes, blocks)](
            q_latent, q_rope, TensorDescriptor.from_tensor(flat, [TILE.value, latent], SHARED),
            TensorDescriptor.from_tensor(flat, [TILE.value, q_rope.shape[2]], SHARED), block_table,
            context_lens, row_starts, schedule, out, lse, sums, stats, counters(out.device), rows,
            scale * LOG2_E, q_latent.stride(0), q_latent.stride(1), q_rope.stride(0), q_rope.stride(1),
            block_table.stride(0), EACH=each, HEADS=heads, STAGES=STAGES, M=FOLDED, num_warps=4,
        )  # fmt: skip
        return out


def _build(traits: Traits, device: Device) -> Implementation:
    decode = MLADecode(whole(traits, "heads"), device.cores)
    return Implementation(decode, schedule=decode.schedule)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        op="attention.mla_decode",
        name="hopper",
        needs=Needs(
            sm=(9, 0), dtype={BF16, torch.float16}, latent={512}, rope={64}, block_tokens={64}
        ),
        band=Band.TUNED,
        build=_build,
    ),
)

__all__ = ["KERNELS", "MLADecode"]
