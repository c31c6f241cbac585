# SPDX-License-Identifier: MIT
"""`step.settle` and `step.greedy`: one launch each at the two ends of a step.

In and out: as the ops say. The likeliest token is the largest 64-bit key (logit in the order of its bits, then
the lowest id), so that programs may take a row apart in any way and agree; the last program of a row to
arrive merges what the others found. Not a number is larger than everything, as it is to torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenspeed.kernels.needs import AtLeast, Needs
from tokenspeed.kernels.spec import Band, Kernel, Plain
from tokenspeed.kernels.workspace import counters

COLUMNS = 1024
LOGITS = 2048
"""Logits a program looks at in one go."""
PROGRAMS = 256
"""Rows are cut until there are about this many programs: two for each of a large chip's processors."""


@triton.jit(do_not_specialize=["ids_count", "width"])
def _settle(ids, ids_count, slots, last_tokens, table, table_stride, block_table, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    blocks = tl.load(table + slot * table_stride + column, inside, 0)
    tl.store(block_table + row * width + column, blocks, inside)
    has_id = (tl.program_id(1) == 0) & (row < ids_count)
    in_flight = has_id & (tl.load(ids + row, has_id, 0) < 0)
    tl.store(ids + row, tl.load(last_tokens + slot, in_flight, 0), in_flight)


@triton.jit
def _keys(logits, id):
    """Order-preserving 64-bit keys of logits at ids."""
    logits = tl.where(logits == 0.0, 0.0, logits)  # a negative zero is no smaller
    bits = logits.to(tl.int32, bitcast=True)
    ordered = tl.where(logits != logits, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - id).to(tl.int64)


@triton.jit
def _note(best, slot, last_tokens, chosen):
    """Write what the best key of a row means."""
    ordered = (best >> 32).to(tl.int32)
    finite = (ordered < 0x7F800000) & (ordered > -0x7F800001)  # between the infinities
    id = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    tl.store(chosen, tl.where(finite, id, -1).to(tl.int32))
    tl.store(last_tokens + slot, tl.where(finite, id, 0))


@triton.jit
def _greedy(
    logits, vocab, slots, last_tokens, chosen, partials, arrived,
    PART: tl.constexpr, PARTS: tl.constexpr, PARTS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    least = -0x7FFFFFFFFFFFFFFF
    best = tl.full((BLOCK,), least, tl.int64)
    for start in range(part * PART, part * PART + PART, BLOCK):
        id = start + tl.arange(0, BLOCK)
        value = tl.load(logits + row * vocab + id, id < vocab, 0.0).to(tl.float32)
        best = tl.maximum(best, tl.where(id < vocab, _keys(value, id), least))
    found = tl.max(best, 0)
    slot = tl.load(slots + row)
    if PARTS == 1:
        _note(found, slot, last_tokens, chosen + row)
    else:
        tl.store(partials + row * PARTS + part, found)
        tl.debug_barrier()
        if tl.atomic_add(arrived + row, 1, sem="acq_rel") == PARTS - 1:
            other = tl.arange(0, PARTS_PADDED)
            all_found = tl.load(partials + row * PARTS + other, other < PARTS, least, cache_modifier=".cg")
            _note(tl.max(all_found, 0), slot, last_tokens, chosen + row)
            tl.store(arrived + row, 0)


def cut(vocab: int, rows: int, block: int, programs: int) -> tuple[int, int]:
    """(ids of a part, parts) of each of `rows` rows, in whole blocks, for about so many programs in all.

    Kernels are compiled for a cut; it goes by the next power of two of rows, so that few are.
    """
    parts = min(triton.cdiv(vocab, block), max(1, programs // triton.next_power_of_2(rows)))
    part = triton.cdiv(triton.cdiv(vocab, parts), block) * block
    return part, triton.cdiv(vocab, part)


def settle(ids: Tensor, slots: Tensor, last_tokens: Tensor, table: Tensor, block_table: Tensor) -> Tensor:
    """Put the last token of its slot for each negative id, and gather the rows' block table."""
    rows, width = block_table.shape
    assert block_table.is_contiguous(), "want block_table [R, B] contiguous"
    assert table.stride(1) == 1, "want table [M, Bmax], last dimension dense"
    grid = (rows, triton.cdiv(width, COLUMNS))
    _settle[grid](ids, ids.shape[0], slots, last_tokens, table, table.stride(0), block_table, width, COLUMNS)
    return block_table


def greedy(logits: Tensor, slots: Tensor, last_tokens: Tensor, chosen: Tensor) -> Tensor:
    """Choose each row's likeliest token, note it as its slot's last; -1 where the row is at fault."""
    rows, vocab = logits.shape
    assert logits.is_contiguous(), "want logits [S, V] contiguous"
    assert chosen.shape == slots.shape == (rows,), "want slots [S], chosen [S]"
    if not rows:
        return chosen
    part, parts = cut(vocab, rows, LOGITS, PROGRAMS)
    partials = torch.empty((rows, parts), dtype=torch.int64, device=logits.device)
    _greedy[(rows, parts)](
        logits, vocab, slots, last_tokens, chosen, partials, counters(logits.device),
        part, parts, triton.next_power_of_2(parts), LOGITS, num_warps=8,
    )  # fmt: skip
    return chosen


_NEEDS = Needs(sm=AtLeast((8, 0)))
KERNELS = (
    Kernel("step.settle", "triton", _NEEDS, Band.FAST, Plain(settle)),
    Kernel("step.greedy", "triton", _NEEDS, Band.FAST, Plain(greedy)),
)
