# SPDX-License-Identifier: MIT
"""The causal flash attention of `hopper.prefill`, in Gluon: one producer warp, two warpgroups of 64 rows.

In: a tile of 128 rows, which are the queries of 128 / G tokens times the G heads that share keys; keys and
values that the bulk copy engine brings by tiles of `KEYS`, the last first, so that the tiles that need a mask
come first and need no test later. Out: the attended rows.

    producer      K(0)  K(1) V(0)  K(2) V(1)  ..                 a ring of `STAGES` for each
    warpgroup     S(0)  | S(1) = Q K(1)  with  O += P(0) V(0)  |  S(2) ..
                         the softmax of S(i) runs while P(i-1) V(i-1) is in the tensor cores

Row sums are of unrounded weights in float32; the running maximum starts at a finite number, since a whole
tile may be hidden from a row.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

ROWS = gl.constexpr(64)
LOWEST = gl.constexpr(-1e30)


@gluon.jit
def place_of(ring, index):
    """Return the stage of the `index`-th tile and the parity of its use."""
    stages: gl.constexpr = ring.shape[0]
    return index % stages, (index // stages) & 1


@gluon.jit
def produce_raised(
    raised, shared, k_ring, s_ring, v_ring, k_full, k_free, v_full, v_free, base, k_at, v_at, s_at, tiles
):
    """Bring tiles of keys (their own part and the shared one) and values, the last first."""
    KEYS: gl.constexpr = k_ring.shape[1]
    K_BYTES: gl.constexpr = KEYS * (k_ring.shape[2] + s_ring.shape[2]) * 2
    V_BYTES: gl.constexpr = KEYS * v_ring.shape[2] * 2
    for i in range(tiles + 1):
        if i < tiles:
            stage, parity = place_of(k_full, i)
            mbarrier.wait(k_free.index(stage), parity ^ 1)
            mbarrier.expect(k_full.index(stage), K_BYTES)
            token = base + (tiles - 1 - i) * KEYS
            tma.async_copy_global_to_shared(raised, [token, k_at], k_full.index(stage), k_ring.index(stage))
            tma.async_copy_global_to_shared(shared, [token, s_at], k_full.index(stage), s_ring.index(stage))
        if i > 0:
            stage, parity = place_of(v_full, i - 1)
            mbarrier.wait(v_free.index(stage), parity ^ 1)
            mbarrier.expect(v_full.index(stage), V_BYTES)
            token = base + (tiles - i) * KEYS
            tma.async_copy_global_to_shared(raised, [token, v_at], v_full.index(stage), v_ring.index(stage))


@gluon.jit
def produce_paged(
    k_arena, v_arena, table, k_ring, v_ring, k_full, k_free, v_full, v_free, context, at, tiles
):  # fmt: skip
    """Bring tiles of keys and values out of their pages, the last first; past the last page, that one again."""
    KEYS: gl.constexpr = k_ring.shape[1]
    PAGE: gl.constexpr = k_arena.block_type.shape[0]
    BYTES: gl.constexpr = KEYS * k_ring.shape[2] * 2
    last = gl.cdiv(context, PAGE) - 1
    for i in range(tiles + 1):
        if i < tiles:
            stage, parity = place_of(k_full, i)
            mbarrier.wait(k_free.index(stage), parity ^ 1)
            mbarrier.expect(k_full.index(stage), BYTES)
            for j in gl.static_range(KEYS // PAGE):
                block = gl.load(table + gl.minimum((tiles - 1 - i) * (KEYS // PAGE) + j, last))
                tile = k_ring.index(stage).slice(j * PAGE, PAGE, 0)
                tma.async_copy_global_to_shared(k_arena, [block * PAGE, at], k_full.index(stage), tile)
        if i > 0:
            stage, parity = place_of(v_full, i - 1)
            mbarrier.wait(v_free.index(stage), parity ^ 1)
            mbarrier.expect(v_full.index(stage), BYTES)
            for j in gl.static_range(KEYS // PAGE):
                block = gl.load(table + gl.minimum((tiles - i) * (KEYS // PAGE) + j, last))
                tile = v_ring.index(stage).slice(j * PAGE, PAGE, 0)
                tma.async_copy_global_to_shared(v_arena, [block * PAGE, at], v_full.index(stage), tile)


@gluon.jit
def clear_past(ring, full, valid):
    """Zero the rows of the first tile from `valid` on: hidden weights are 0, but 0 times NaN is not."""
    KEYS: gl.constexpr = ring.shape[1]
    lanes: gl.constexpr = ring.shape[2] // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])
    mbarrier.wait(full.index(0), 0)
    values = ring.index(0).load(layout)
    row = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    ring.index(0).store(gl.where((row < valid)[:, None], values, gl.zeros_like(values)))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def load_queries(q, offsets, asked, ring, dims: gl.constexpr):
    """Copy rows [ROWS, dims] at `offsets` (elements, a row each) into shared memory; rows not asked are 0."""
    lanes: gl.constexpr = dims // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])
    row: gl.constexpr = gl.SliceLayout(1, layout)
    at = gl.convert_layout(offsets, row)[:, None] + gl.arange(0, dims, gl.SliceLayout(0, layout))[None, :]
    values = gl.load(q + at, mask=gl.convert_layout(asked, row)[:, None], other=0.0)
    ring.store(values)


@gluon.jit
def softmax_turn(scores, top, norm, scale_log2):
    """Weights of `scores`, the new maximum and norm, and how much what was summed before fades."""
    raised = gl.maximum(top, gl.max(scores, 1))
    scaled = raised * scale_log2
    weights = gl.exp2(scores * scale_log2 - scaled[:, None])
    fade = gl.exp2(top * scale_log2 - scaled)
    norm = norm * fade + gl.sum(weights, 1)
    return weights, raised, norm, fade


@gluon.jit
def score(q_tile, s_tile, k_ring, s_ring, k_full, i, layout: gl.constexpr, SHARED: gl.constexpr):
    """Start Q K^T of the i-th tile."""
    KEYS: gl.constexpr = k_ring.shape[1]
    stage, parity = place_of(k_full, i)
    mbarrier.wait(k_full.index(stage), parity)
    zero = gl.zeros([ROWS, KEYS], gl.float32, layout)
    scores = warpgroup_mma(q_tile, k_ring.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
    if SHARED:
        scores = warpgroup_mma(s_tile, s_ring.index(stage).permute((1, 0)), scores, is_async=True)
    return scores


@gluon.jit
def as_factor(rows, layout: gl.constexpr):
    """See a value per row as a column of a tile in `layout`: both products lay rows out alike."""
    return gl.convert_layout(rows, gl.SliceLayout(1, layout), assert_trivial=True)[:, None]


@gluon.jit
def hide(scores, position, tile, KEYS: gl.constexpr, layout: gl.constexpr):
    """Mask keys after each row's own position."""
    key = tile * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, layout))
    return gl.where(key[None, :] <= position[:, None], scores, LOWEST)


@gluon.jit
def advance(
    i, tiles, acc, top, norm, weights, q_tile, s_tile, k_ring, s_ring, v_ring, k_full, k_free, v_full, v_free,
    position, scale_log2, layout: gl.constexpr, SHARED: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Add P V of tile i - 1 while the scores of tile i become weights."""
    KEYS: gl.constexpr = k_ring.shape[1]
    scores = score(q_tile, s_tile, k_ring, s_ring, k_full, i, layout, SHARED)
    before, parity = place_of(v_full, i - 1)
    mbarrier.wait(v_full.index(before), parity)
    acc = warpgroup_mma(weights, v_ring.index(before), acc, is_async=True)
    scores = warpgroup_mma_wait(1, deps=[scores])
    stage, _ = place_of(k_full, i)
    mbarrier.arrive(k_free.index(stage))
    if MASKED:
        scores = hide(scores, position, tiles - 1 - i, KEYS, layout)
    fresh, top, norm, fade = softmax_turn(scores, top, norm, scale_log2)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(v_free.index(before))
    out_layout: gl.constexpr = acc.type.layout
    acc = acc * as_factor(fade, out_layout)
    weights = gl.convert_layout(fresh.to(v_ring.dtype), gl.DotOperandLayout(0, out_layout, 2))
    return acc, top, norm, weights


@gluon.jit
def consume(
    q, out, q_tile, s_tile, k_ring, s_ring, v_ring, k_full, k_free, v_full, v_free,
    begin, first, length, context, head, tiles, clear, q_token, q_head, out_token, out_head, scale_log2,
    half: gl.constexpr, GROUP: gl.constexpr, G: gl.constexpr, SHARED: gl.constexpr, PAGED: gl.constexpr,
):  # fmt: skip
    """Attend with half a tile of rows and write the result."""
    KEYS: gl.constexpr = k_ring.shape[1]
    DIM: gl.constexpr = k_ring.shape[2]
    VALUE: gl.constexpr = v_ring.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE, 16])
    row = half * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    token = first + row // G
    asked = (token < length) & (row % G < GROUP)
    position = context - length + token
    token = (begin + token).to(gl.int64)
    heads = head * GROUP + row % G
    query_at = token * q_token + heads * q_head
    load_queries(q, query_at, asked, q_tile, DIM)
    if SHARED:
        load_queries(q, query_at + DIM, asked, s_tile, SHARED)
    fence_async_shared()
    gl.thread_barrier()
    scores = score(q_tile, s_tile, k_ring, s_ring, k_full, 0, layout, SHARED)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_free.index(0))
    scores = hide(scores, position, tiles - 1, KEYS, layout)
    top = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, layout))
    norm = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, layout))
    weights, top, norm, _ = softmax_turn(scores, top, norm, scale_log2)
    weights = gl.convert_layout(weights.to(v_ring.dtype), gl.DotOperandLayout(0, out_layout, 2))
    acc = gl.zeros([ROWS, VALUE], gl.float32, out_layout)
    if PAGED:
        valid = context - (tiles - 1) * KEYS
        if valid < KEYS:
            clear_past(v_ring, v_full, valid)
    for i in range(1, tiles - clear):
        acc, top, norm, weights = advance(
            i, tiles, acc, top, norm, weights, q_tile, s_tile, k_ring, s_ring, v_ring, k_full, k_free, v_full,
            v_free, position, scale_log2, layout, SHARED, True,
        )  # fmt: skip
    for i in range(gl.maximum(tiles - clear, 1), tiles):
        acc, top, norm, weights = advance(
            i, tiles, acc, top, norm, weights, q_tile, s_tile, k_ring, s_ring, v_ring, k_full, k_free, v_full,
            v_free, position, scale_log2, layout, SHARED, False,
        )  # fmt: skip
    last, parity = place_of(v_full, tiles - 1)
    mbarrier.wait(v_full.index(last), parity)
    acc = warpgroup_mma(weights, v_ring.index(last), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[acc])
    acc = acc * as_factor(1.0 / norm, out_layout)
    e = gl.arange(0, VALUE, gl.SliceLayout(0, out_layout))
    out_at = as_factor(token * out_token + heads * out_head, out_layout)
    gl.store(out + out_at + e[None, :], acc.to(out.dtype.element_ty), mask=as_factor(asked, out_layout))


@gluon.jit
def find_tile(row_starts, context_lens, rows, tile, TOKENS: gl.constexpr, ALIGN: gl.constexpr):
    """Return the row that tile belongs to, which of its tiles it is, its tokens, and tokens of context before.

    Contexts are counted in whole multiples of ALIGN.
    """
    row = 0
    base = 0
    begin = gl.load(row_starts)
    end = gl.load(row_starts + 1)
    while (row < rows) & (tile >= gl.cdiv(end - begin, TOKENS)):
        tile -= gl.cdiv(end - begin, TOKENS)
        base += gl.cdiv(gl.load(context_lens + row), ALIGN) * ALIGN
        row += 1
        begin = end
        end = gl.load(row_starts + gl.minimum(row + 1, rows))
    return row, tile, begin, end, base


@gluon.jit
def open_rings(STAGES: gl.constexpr):
    """Return the barriers of the two rings: full, free of the keys, full, free of the values."""
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(v_free.index(stage), count=2)
    fence_async_shared()
    return k_full, k_free, v_full, v_free


@gluon.jit
def attend_raised(
    q, raised, shared, out, row_starts, context_lens, rows, scale_log2, q_token, q_head, out_token, out_head,
    s_at,
    DIM: gl.constexpr, SHARED: gl.constexpr, VALUE: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend with 128 tokens of one head over keys and values raised from a latent.

    raised: [C, h (DIM + VALUE)] and shared: [C, .. + SHARED] are descriptors of boxes of KEYS tokens; the
    context of every row begins at a multiple of KEYS, and what fills up the one before is finite.
    """
    head = gl.program_id(1)
    tile = gl.num_programs(0) - 1 - gl.program_id(0)  # the longest contexts of a row first
    row, tile, begin, end, base = find_tile(row_starts, context_lens, rows, tile, 2 * ROWS, KEYS)
    if row >= rows:
        return
    context = gl.load(context_lens + row)
    length = end - begin
    first = tile * 2 * ROWS
    tiles = gl.cdiv(gl.minimum(context - length + first + 2 * ROWS, context), KEYS)
    clear = (context - length + first + 1) // KEYS
    dtype: gl.constexpr = raised.dtype
    q_tile = gl.allocate_shared_memory(dtype, [2, ROWS, DIM], raised.layout)
    s_tile = gl.allocate_shared_memory(dtype, [2, ROWS, SHARED], shared.layout)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], raised.layout)
    s_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, SHARED], shared.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, VALUE], raised.layout)
    k_full, k_free, v_full, v_free = open_rings(STAGES)
    gl.warp_specialize(
        [
            (consume, (
                q, out, q_tile.index(0), s_tile.index(0), k_ring, s_ring, v_ring, k_full, k_free, v_full,
                v_free, begin, first, length, context, head, tiles, clear, q_token, q_head, out_token,
                out_head, scale_log2, gl.constexpr(0), gl.constexpr(1), gl.constexpr(1), gl.constexpr(SHARED),
                gl.constexpr(False),
            )),
            (consume, (
                q, out, q_tile.index(1), s_tile.index(1), k_ring, s_ring, v_ring, k_full, k_free, v_full,
                v_free, begin, first, length, context, head, tiles, clear, q_token, q_head, out_token,
                out_head, scale_log2, gl.constexpr(1), gl.constexpr(1), gl.constexpr(1), gl.constexpr(SHARED),
                gl.constexpr(False),
            )),
            (produce_raised, (
                raised, shared, k_ring, s_ring, v_ring, k_full, k_free, v_full, v_free, base,
                head * (DIM + VALUE), head * (DIM + VALUE) + DIM, s_at, tiles,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


@gluon.jit
def attend_paged(
    q, k_arena, v_arena, out, block_table, row_starts, context_lens, rows, scale_log2, q_token, q_head,
    table_row, out_token, out_head,
    GROUP: gl.constexpr, G: gl.constexpr, DIM: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend with 128 / G tokens of the heads of one kv head over the pages of a row.

    k_arena, v_arena: [N P, K DIM] are descriptors of boxes of one page.
    """
    head = gl.program_id(1)
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    row, tile, begin, end, _ = find_tile(row_starts, context_lens, rows, tile, 2 * ROWS // G, KEYS)
    if row >= rows:
        return
    context = gl.load(context_lens + row)
    length = end - begin
    first = tile * (2 * ROWS // G)
    tiles = gl.cdiv(gl.minimum(context - length + first + 2 * ROWS // G, context), KEYS)
    clear = (context - length + first + 1) // KEYS
    dtype: gl.constexpr = k_arena.dtype
    q_tile = gl.allocate_shared_memory(dtype, [2, ROWS, DIM], k_arena.layout)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], k_arena.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], k_arena.layout)
    k_full, k_free, v_full, v_free = open_rings(STAGES)
    gl.warp_specialize(
        [
            (consume, (
                q, out, q_tile.index(0), q_tile.index(0), k_ring, k_ring, v_ring, k_full, k_free, v_full,
                v_free, begin, first, length, context, head, tiles, clear, q_token, q_head, out_token,
                out_head, scale_log2, gl.constexpr(0), gl.constexpr(GROUP), gl.constexpr(G), gl.constexpr(0),
                gl.constexpr(True),
            )),
            (consume, (
                q, out, q_tile.index(1), q_tile.index(1), k_ring, k_ring, v_ring, k_full, k_free, v_full,
                v_free, begin, first, length, context, head, tiles, clear, q_token, q_head, out_token,
                out_head, scale_log2, gl.constexpr(1), gl.constexpr(GROUP), gl.constexpr(G), gl.constexpr(0),
                gl.constexpr(True),
            )),
            (produce_paged, (
                k_arena, v_arena, block_table + row * table_row, k_ring, v_ring, k_full, k_free, v_full,
                v_free, context, head * DIM, tiles,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
