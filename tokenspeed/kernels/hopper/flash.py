# SPDX-License-Identifier: MIT
"""The causal flash attention of `hopper.prefill`, in Gluon: one producer warp, two warpgroups of 64 rows.

In: queries, and keys and values that the bulk copy engine brings by tiles of `KEYS`, the last first, so that
the tiles that need a mask come first and need no test later. Out: the attended rows. A job is a tile of 128
rows, which are the queries of 128 / G tokens times the G heads that share keys. Programs stay: each takes
its first job by its number and the next ones from a counter, the longest contexts of a head first, and brings
the next job's tiles while the last one's are still attended with.

    producer      job 0: K(0) Q  K(1) V(0)  K(2) V(1)  ..  V(n)   job 1: K(0) ..
    warpgroup     S(0)  | S(1) = Q K(1)  with  O += P(0) V(0)  |  S(2) ..
                         the softmax of S(i) runs while P(i-1) V(i-1) is in the tensor cores

Row sums are of unrounded weights in float32; the running maximum starts at a finite number, since a whole
tile may be hidden from a row.

When jobs are too few for the chip (a short turn over a long context), each is cut into `parts` stretches of
keys that are jobs of their own. What they summed goes to a workspace, and the warpgroup that arrives last
adds the parts up, in their order, so that repeated runs agree bit for bit. All counters (next job, programs
that are done, arrivals) are zero between launches.
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
LOWEST = gl.constexpr(-(2.0**100))
"""Below every score; a power of two, so that its scaled value is exact and differs from itself by 0."""
TILES_LEAST = gl.constexpr(4)
"""Tiles of keys of a part, at least."""
WORD = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def count_tiles(row_starts, rows, TOKENS: gl.constexpr):
    """Tiles of TOKENS new tokens over all rows."""
    tiles = 0
    begin = gl.load(row_starts)
    for row in range(rows):
        end = gl.load(row_starts + row + 1)
        tiles += gl.cdiv(end - begin, TOKENS)
        begin = end
    return tiles


@gluon.jit
def find_tile(job, tiles_all, row_starts, context_lens, TOKENS: gl.constexpr, KEYS: gl.constexpr):
    """Return head, row, first token in it, its tokens' span, its context, and keys of the rows before (each a
    whole number of tiles).
    """
    head = job // tiles_all
    tile = tiles_all - 1 - job % tiles_all
    row = 0
    base = 0
    begin = gl.load(row_starts)
    end = gl.load(row_starts + 1)
    while tile >= gl.cdiv(end - begin, TOKENS):
        tile -= gl.cdiv(end - begin, TOKENS)
        base += gl.cdiv(gl.load(context_lens + row), KEYS) * KEYS
        row += 1
        begin = end
        end = gl.load(row_starts + row + 1)
    return head, row, tile * TOKENS, begin, end, gl.load(context_lens + row), base


@gluon.jit
def span_of(
    first, begin, end, context, part, parts, TOKENS: gl.constexpr, KEYS: gl.constexpr, SPLIT: gl.constexpr
):  # fmt: skip
    """Return the tiles of keys [low, high) of a part of a job, how many of the job's tiles all its queries see
    whole, and the parts that have any.
    """
    position = context - (end - begin) + first
    high = gl.cdiv(gl.minimum(position + TOKENS, context), KEYS)
    low = high * 0
    filled = low + 1
    if SPLIT:
        share = gl.maximum(gl.cdiv(high, parts), TILES_LEAST)
        filled = gl.cdiv(high, share)
        high = high - part * share
        low = gl.maximum(high - share, 0)
    return low, high, (position + 1) // KEYS, filled


@gluon.jit
def place_of(ring, index):
    """Return the stage of the `index`-th tile and the parity of its use."""
    stages: gl.constexpr = ring.shape[0]
    return index % stages, (index // stages) & 1


@gluon.jit
def announce(job, turn, jobs, jobs_full, jobs_free):
    """Tell the warpgroups which job comes next."""
    stage, parity = place_of(jobs_full, turn)
    mbarrier.wait(jobs_free.index(stage), parity ^ 1)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    jobs.index(stage).store(gl.full([1], 0, gl.int32, layout) + job)
    mbarrier.arrive(jobs_full.index(stage))


@gluon.jit
def hear(turn, jobs, jobs_full, jobs_free):
    """Return the job of this turn."""
    stage, parity = place_of(jobs_full, turn)
    mbarrier.wait(jobs_full.index(stage), parity)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    job = gl.sum(jobs.index(stage).load(layout), 0)
    mbarrier.arrive(jobs_free.index(stage))
    return job


@gluon.jit
def leave(counts):
    """Put the counters back to zero if every other program has taken its last job."""
    if gl.atomic_add(counts + 1, 1, sem="acq_rel", scope="gpu") == gl.num_programs(0) - 1:
        gl.store(counts, 0)
        gl.store(counts + 1, 0)


@gluon.jit
def bring_raised(
    q, q_shared, raised, shared, row_starts, context_lens, counts, tiles_all, heads, parts, s_at, rings, jobs,
    SPLIT: gl.constexpr,
):  # fmt: skip
    """Copy queries, keys (their own part and the shared one) and values of one job after the other."""
    q_tile, s_tile, k_ring, s_ring, v_ring, q_full, q_free, k_full, k_free, v_full, v_free = rings
    KEYS: gl.constexpr = k_ring.shape[1]
    DIM: gl.constexpr = k_ring.shape[2]
    VALUE: gl.constexpr = v_ring.shape[2]
    TOKENS: gl.constexpr = 2 * ROWS
    job = gl.program_id(0)
    turn = 0
    step = 0
    while job < tiles_all * heads * parts:
        head, _, first, begin, end, context, base = find_tile(
            job // parts, tiles_all, row_starts, context_lens, TOKENS, KEYS
        )
        low, high, _, _ = span_of(first, begin, end, context, job % parts, parts, TOKENS, KEYS, SPLIT)
        if high > low:
            announce(job, turn, *jobs)
            at = head * (DIM + VALUE)
            for i in range(high - low + 1):
                token = base + (high - 1 - i) * KEYS
                if i < high - low:
                    stage, parity = place_of(k_full, step + i)
                    full = k_full.index(stage)
                    mbarrier.wait(k_free.index(stage), parity ^ 1)
                    mbarrier.expect(full, raised.block_type.nbytes + shared.block_type.nbytes)
                    tma.async_copy_global_to_shared(raised, [token, at], full, k_ring.index(stage))
                    tma.async_copy_global_to_shared(shared, [token, s_at], full, s_ring.index(stage))
                if i == 0:
                    full = q_full.index(0)
                    mbarrier.wait(q_free.index(0), (turn & 1) ^ 1)
                    mbarrier.expect(full, q.block_type.nbytes + q_shared.block_type.nbytes)
                    tma.async_copy_global_to_shared(q, [begin + first, head, 0], full, q_tile)
                    tma.async_copy_global_to_shared(q_shared, [begin + first, head, DIM], full, s_tile)
                else:
                    stage, parity = place_of(v_full, step + i - 1)
                    full = v_full.index(stage)
                    mbarrier.wait(v_free.index(stage), parity ^ 1)
                    mbarrier.expect(full, raised.block_type.nbytes)
                    tma.async_copy_global_to_shared(
                        raised, [token + KEYS, at + DIM], full, v_ring.index(stage)
                    )
            step += high - low
            turn += 1
        job = gl.num_programs(0) + gl.atomic_add(counts, 1)
    announce(job, turn, *jobs)
    leave(counts)


@gluon.jit
def bring_paged(
    q, k_arena, v_arena, block_table, table_row, row_starts, context_lens, counts, tiles_all, heads, parts,
    rings, jobs, GROUP: gl.constexpr, G: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """Copy queries, and keys and values out of their pages; past the last page of a row, that one again."""
    q_tile, k_ring, v_ring, q_full, q_free, k_full, k_free, v_full, v_free = rings
    KEYS: gl.constexpr = k_ring.shape[1]
    DIM: gl.constexpr = k_ring.shape[2]
    TOKENS: gl.constexpr = 2 * ROWS // G
    PAGE: gl.constexpr = k_arena.block_type.shape[0]
    PAGES: gl.constexpr = KEYS // PAGE
    job = gl.program_id(0)
    turn = 0
    step = 0
    while job < tiles_all * heads * parts:
        head, row, first, begin, end, context, _ = find_tile(
            job // parts, tiles_all, row_starts, context_lens, TOKENS, KEYS
        )
        low, high, _, _ = span_of(first, begin, end, context, job % parts, parts, TOKENS, KEYS, SPLIT)
        if high > low:
            announce(job, turn, *jobs)
            table = block_table + row.to(gl.int64) * table_row
            last = gl.cdiv(context, PAGE) - 1
            for i in range(high - low + 1):
                page = (high - 1 - i) * PAGES
                if i < high - low:
                    stage, parity = place_of(k_full, step + i)
                    mbarrier.wait(k_free.index(stage), parity ^ 1)
                    mbarrier.expect(k_full.index(stage), PAGES * k_arena.block_type.nbytes)
                    for j in gl.static_range(PAGES):
                        block = gl.load(table + gl.minimum(page + j, last))
                        box = k_ring.index(stage).slice(j * PAGE, PAGE, 0)
                        at = [block * PAGE, head * DIM]
                        tma.async_copy_global_to_shared(k_arena, at, k_full.index(stage), box)
                if i == 0:
                    mbarrier.wait(q_free.index(0), (turn & 1) ^ 1)
                    mbarrier.expect(q_full.index(0), q.block_type.nbytes)
                    q_at = [begin + first, head * GROUP, 0]
                    tma.async_copy_global_to_shared(q, q_at, q_full.index(0), q_tile)
                else:
                    stage, parity = place_of(v_full, step + i - 1)
                    mbarrier.wait(v_free.index(stage), parity ^ 1)
                    mbarrier.expect(v_full.index(stage), PAGES * v_arena.block_type.nbytes)
                    for j in gl.static_range(PAGES):
                        block = gl.load(table + gl.minimum(page + PAGES + j, last))
                        box = v_ring.index(stage).slice(j * PAGE, PAGE, 0)
                        at = [block * PAGE, head * DIM]
                        tma.async_copy_global_to_shared(v_arena, at, v_full.index(stage), box)
            step += high - low
            turn += 1
        job = gl.num_programs(0) + gl.atomic_add(counts, 1)
    announce(job, turn, *jobs)
    leave(counts)


@gluon.jit
def clear_past(ring, full, index, valid):
    """Zero the rows of a tile from `valid` on: hidden weights are 0, but 0 times NaN is not."""
    KEYS: gl.constexpr = ring.shape[1]
    lanes: gl.constexpr = ring.shape[2] // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])
    stage, parity = place_of(full, index)
    mbarrier.wait(full.index(stage), parity)
    values = ring.index(stage).load(layout)
    row = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    ring.index(stage).store(gl.where((row < valid)[:, None], values, gl.zeros_like(values)))
    fence_async_shared()
    gl.thread_barrier()


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
def score(queries, k_ring, s_ring, stage, layout: gl.constexpr):
    """Start Q K^T of the tile in a stage."""
    q_tile, s_tile = queries
    KEYS: gl.constexpr = k_ring.shape[1]
    zero = gl.zeros([ROWS, KEYS], gl.float32, layout)
    scores = warpgroup_mma(q_tile, k_ring.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
    if s_ring is not None:
        scores = warpgroup_mma(s_tile, s_ring.index(stage).permute((1, 0)), scores, is_async=True)
    return scores


@gluon.jit
def hide(scores, position, tile, KEYS: gl.constexpr, layout: gl.constexpr):
    """Mask keys after each row's own position."""
    key = tile * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, layout))
    return gl.where(key[None, :] <= position[:, None], scores, -float("inf"))


@gluon.jit
def as_column(rows, layout: gl.constexpr):
    """See a value per row as a column of a tile in `layout`: both products lay rows out alike."""
    return gl.convert_layout(rows, gl.SliceLayout(1, layout), assert_trivial=True)[:, None]


@gluon.jit
def advance(
    index, event, tile, acc, fade, top, norm, weights, queries, rings, turns, position, scale_log2,
    half: gl.constexpr, layout: gl.constexpr, out_layout: gl.constexpr, MASKED: gl.constexpr,
    TURNS: gl.constexpr,
):  # fmt: skip
    """Add P V of the tile before `index` while the scores of this one, keys `tile`, become weights.

    With TURNS the warpgroups begin their products by turns, so that one makes weights while the other
    multiplies. Measured (H200, docs/log/0006): 9% faster for MLA over 32k tokens and within 4% elsewhere,
    4 to 13% slower for GQA. What was summed before fades while the scores are made, not before.
    """
    k_ring, s_ring, v_ring, k_full, k_free, v_full, v_free = rings
    KEYS: gl.constexpr = k_ring.shape[1]
    stage, parity = place_of(k_full, index)
    mbarrier.wait(k_full.index(stage), parity)
    before, parity = place_of(v_full, index - 1)
    mbarrier.wait(v_full.index(before), parity)
    if TURNS:
        mbarrier.wait(turns.index(half), (event & 1) ^ (1 - half))
    scores = score(queries, k_ring, s_ring, stage, layout)
    acc = acc * as_column(fade, out_layout)
    acc = warpgroup_mma(weights, v_ring.index(before), acc, is_async=True)
    if TURNS:
        mbarrier.arrive(turns.index(1 - half))
    scores = warpgroup_mma_wait(1, deps=[scores])
    mbarrier.arrive(k_free.index(stage))
    if MASKED:
        scores = hide(scores, position, tile, KEYS, layout)
    fresh, top, norm, fade = softmax_turn(scores, top, norm, scale_log2)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(v_free.index(before))
    weights = gl.convert_layout(fresh.to(v_ring.dtype), gl.DotOperandLayout(0, out_layout, 2))
    return acc, fade, top, norm, weights


@gluon.jit
def add_parts(
    sums, stats, first_part, parts, scale_log2, half: gl.constexpr, VALUE: gl.constexpr, layout: gl.constexpr
):  # fmt: skip
    """Add up half a tile of rows over the parts of a job, in their order: the sum and the norm."""
    row = half * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    column = gl.arange(0, VALUE, gl.SliceLayout(0, layout))
    top = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, layout))
    norm = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, layout))
    acc = gl.zeros([ROWS, VALUE], gl.float32, layout)
    for part in range(first_part, first_part + parts):
        place = part * (2 * ROWS) + row
        its_top = gl.load(stats + place * 2, cache_modifier=".cg")
        its_norm = gl.load(stats + place * 2 + 1, cache_modifier=".cg")
        its_acc = gl.load(sums + place[:, None] * VALUE + column[None, :], cache_modifier=".cg")
        raised = gl.maximum(top, its_top)
        fade, weight = gl.exp2((top - raised) * scale_log2), gl.exp2((its_top - raised) * scale_log2)
        acc = acc * fade[:, None] + its_acc * weight[:, None]
        norm = norm * fade + its_norm * weight
        top = raised
    return acc, norm


@gluon.jit
def consume(
    half: gl.constexpr, out, row_starts, context_lens, counts, sums, stats, tiles_all, heads, parts, out_token,
    out_head, scale_log2, queries, q_full, q_free, rings, turns, jobs,
    GROUP: gl.constexpr, G: gl.constexpr, PAGED: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """Attend with half of the rows of one job after the other."""
    k_ring, s_ring, v_ring, k_full, k_free, v_full, v_free = rings
    KEYS: gl.constexpr = k_ring.shape[1]
    VALUE: gl.constexpr = v_ring.shape[2]
    TOKENS: gl.constexpr = 2 * ROWS // G
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    row = half * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    turn = 0
    step = 0
    job = hear(turn, *jobs)
    while job < tiles_all * heads * parts:
        head, _, first, begin, end, context, _ = find_tile(
            job // parts, tiles_all, row_starts, context_lens, TOKENS, KEYS
        )
        low, high, clear, filled = span_of(
            first, begin, end, context, job % parts, parts, TOKENS, KEYS, SPLIT
        )
        tiles = high - low
        masked = high - gl.maximum(clear, low)
        token = first + row // G
        position = context - (end - begin) + token
        mbarrier.wait(q_full.index(0), turn & 1)
        stage, parity = place_of(k_full, step)
        mbarrier.wait(k_full.index(stage), parity)
        scores = score(queries, k_ring, s_ring, stage, layout)
        scores = warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(k_free.index(stage))
        scores = hide(scores, position, high - 1, KEYS, layout)
        top = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, layout))
        norm = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, layout))
        weights, top, norm, fade = softmax_turn(scores, top, norm, scale_log2)
        weights = gl.convert_layout(weights.to(v_ring.dtype), weights_layout)
        acc = gl.zeros([ROWS, VALUE], gl.float32, out_layout)
        if PAGED:
            valid = context - (high - 1) * KEYS
            if valid < KEYS:
                clear_past(v_ring, v_full, step, valid)
        for i in range(1, masked):
            acc, fade, top, norm, weights = advance(
                step + i, step + i - 1 - turn, high - 1 - i, acc, fade, top, norm, weights, queries, rings, turns,
                position, scale_log2, half, layout, out_layout, True, not PAGED,
            )  # fmt: skip
        for i in range(gl.maximum(masked, 1), tiles):
            acc, fade, top, norm, weights = advance(
                step + i, step + i - 1 - turn, high - 1 - i, acc, fade, top, norm, weights, queries, rings, turns,
                position, scale_log2, half, layout, out_layout, False, not PAGED,
            )  # fmt: skip
        mbarrier.arrive(q_free.index(0))
        last, parity = place_of(v_full, step + tiles - 1)
        mbarrier.wait(v_full.index(last), parity)
        acc = acc * as_column(fade, out_layout)
        acc = warpgroup_mma(weights, v_ring.index(last), acc, is_async=True)
        turn += 1
        step += tiles
        asked = (begin + token < end) & (row % G < GROUP)
        out_at = (begin + token).to(gl.int64) * out_token + (head * GROUP + row % G) * out_head
        column = gl.arange(0, VALUE, gl.SliceLayout(0, out_layout))
        at = as_column(out_at, out_layout) + column[None, :]
        done = job
        job = hear(turn, *jobs)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_free.index(last))
        if SPLIT:
            place = done * (2 * ROWS) + row
            gl.store(stats + place * 2, top)
            gl.store(stats + place * 2 + 1, norm)
            gl.store(sums + as_column(place, out_layout) * VALUE + column[None, :], acc)
            gl.thread_barrier()  # every warp's sums are written before one thread says so
            arrived = counts + 2 + done // parts * 2 + half
            if gl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == filled - 1:
                gl.store(arrived, 0)
                total, whole = add_parts(
                    sums, stats, done // parts * parts, filled, scale_log2, half, VALUE, out_layout
                )
                result = (total * (1.0 / whole)[:, None]).to(out.dtype.element_ty)
                gl.store(out + at, result, mask=as_column(asked, out_layout))
        else:
            result = (acc * as_column(1.0 / norm, out_layout)).to(out.dtype.element_ty)
            gl.store(out + at, result, mask=as_column(asked, out_layout))


@gluon.jit
def open_ring(STAGES: gl.constexpr, READERS: gl.constexpr, WRITERS: gl.constexpr = 1):
    """Return the barriers of a ring: full (once WRITERS have arrived), free (once READERS have)."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=WRITERS)
        mbarrier.init(free.index(stage), count=READERS)
    return full, free


@gluon.jit(do_not_specialize=["rows", "heads", "parts", "s_at"])
def attend_raised(
    q, q_shared, raised, shared, out, row_starts, context_lens, counts, sums, stats, rows, heads, parts,
    scale_log2, out_token, out_head, s_at, STAGES: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """Attend over keys and values raised from a latent, one head at a time.

    q: [T, h, Dn + Dr] in boxes [128, 1, Dn] and, as `q_shared`, [128, 1, Dr]; raised: [C, h (Dn + Dv)] in boxes
    [KEYS, Dn] with Dn = Dv; shared: [C, .. + Dr] in boxes [KEYS, Dr], Dr from column s_at. The context of every
    row begins at a multiple of KEYS, and what fills up the one before is finite.
    """
    dtype: gl.constexpr = raised.dtype
    KEYS: gl.constexpr = raised.block_type.shape[0]
    DIM: gl.constexpr = raised.block_type.shape[1]
    SHARED: gl.constexpr = shared.block_type.shape[1]
    q_tile = gl.allocate_shared_memory(dtype, q.block_type.shape, q.layout)
    s_tile = gl.allocate_shared_memory(dtype, q_shared.block_type.shape, q_shared.layout)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], raised.layout)
    s_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, SHARED], shared.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], raised.layout)
    jobs = gl.allocate_shared_memory(gl.int32, [2, 1], WORD)
    jobs_full, jobs_free = open_ring(2, 2)
    q_full, q_free = open_ring(1, 2)
    k_full, k_free = open_ring(STAGES, 2)
    v_full, v_free = open_ring(STAGES, 2)
    turns, _ = open_ring(2, 1)
    fence_async_shared()
    tiles_all = count_tiles(row_starts, rows, 2 * ROWS)
    rings = (k_ring, s_ring, v_ring, k_full, k_free, v_full, v_free)
    q_rows = q_tile.reshape([2 * ROWS, DIM])
    s_rows = s_tile.reshape([2 * ROWS, SHARED])
    lower = (q_rows.slice(0, ROWS, 0), s_rows.slice(0, ROWS, 0))
    upper = (q_rows.slice(ROWS, ROWS, 0), s_rows.slice(ROWS, ROWS, 0))
    told = (jobs, jobs_full, jobs_free)
    one: gl.constexpr = gl.constexpr(1)
    unpaged: gl.constexpr = gl.constexpr(False)
    split: gl.constexpr = gl.constexpr(SPLIT)
    gl.warp_specialize(
        [
            (consume, (
                gl.constexpr(0), out, row_starts, context_lens, counts, sums, stats, tiles_all, heads, parts,
                out_token, out_head, scale_log2, lower, q_full, q_free, rings, turns, told, one, one, unpaged,
                split,
            )),
            (consume, (
                gl.constexpr(1), out, row_starts, context_lens, counts, sums, stats, tiles_all, heads, parts,
                out_token, out_head, scale_log2, upper, q_full, q_free, rings, turns, told, one, one, unpaged,
                split,
            )),
            (bring_raised, (
                q, q_shared, raised, shared, row_starts, context_lens, counts, tiles_all, heads, parts, s_at,
                (q_tile, s_tile, k_ring, s_ring, v_ring, q_full, q_free, k_full, k_free, v_full, v_free), told,
                split,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


@gluon.jit(do_not_specialize=["rows", "heads", "parts", "table_row"])
def attend_paged(
    q, k_arena, v_arena, out, block_table, row_starts, context_lens, counts, sums, stats, rows, heads, parts,
    scale_log2, table_row, out_token, out_head,
    GROUP: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """Attend with the heads of one kv head at a time over the pages of a row; `heads` counts kv heads.

    q: [T, H, D] in boxes [128 / G, G, D], G the power of two from GROUP up; k_arena, v_arena: [N P, K D] in
    boxes [P, D].
    """
    dtype: gl.constexpr = k_arena.dtype
    G: gl.constexpr = q.block_type.shape[1]
    DIM: gl.constexpr = q.block_type.shape[2]
    q_tile = gl.allocate_shared_memory(dtype, q.block_type.shape, q.layout)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], k_arena.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], k_arena.layout)
    jobs = gl.allocate_shared_memory(gl.int32, [2, 1], WORD)
    jobs_full, jobs_free = open_ring(2, 2)
    q_full, q_free = open_ring(1, 2)
    k_full, k_free = open_ring(STAGES, 2)
    v_full, v_free = open_ring(STAGES, 2)
    turns, _ = open_ring(2, 1)
    fence_async_shared()
    tiles_all = count_tiles(row_starts, rows, 2 * ROWS // G)
    rings = (k_ring, None, v_ring, k_full, k_free, v_full, v_free)
    q_rows = q_tile.reshape([2 * ROWS, DIM])
    lower = (q_rows.slice(0, ROWS, 0), None)
    upper = (q_rows.slice(ROWS, ROWS, 0), None)
    told = (jobs, jobs_full, jobs_free)
    group: gl.constexpr = gl.constexpr(GROUP)
    lanes: gl.constexpr = gl.constexpr(G)
    paged: gl.constexpr = gl.constexpr(True)
    split: gl.constexpr = gl.constexpr(SPLIT)
    gl.warp_specialize(
        [
            (consume, (
                gl.constexpr(0), out, row_starts, context_lens, counts, sums, stats, tiles_all, heads, parts,
                out_token, out_head, scale_log2, lower, q_full, q_free, rings, turns, told, group, lanes, paged,
                split,
            )),
            (consume, (
                gl.constexpr(1), out, row_starts, context_lens, counts, sums, stats, tiles_all, heads, parts,
                out_token, out_head, scale_log2, upper, q_full, q_free, rings, turns, told, group, lanes, paged,
                split,
            )),
            (bring_paged, (
                q, k_arena, v_arena, block_table, table_row, row_starts, context_lens, counts, tiles_all,
                heads, parts, (q_tile, k_ring, v_ring, q_full, q_free, k_full, k_free, v_full, v_free), told,
                group, lanes, split,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
