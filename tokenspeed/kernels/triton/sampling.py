# SPDX-License-Identifier: MIT
"""`sampling.*`: a handful of short launches, each over every part of every row, and nothing on the host.

A row is cut into parts that different programs take. What a row needs to know as a whole goes through memory:
the largest score by an atomic maximum, histograms by atomic sums, and the last program of a row to arrive
draws the conclusion. All sums are of whole numbers, so they do not depend on who comes first.

    maximum   ->  best score and id
    search    ->  per 11 bits of a 32-bit key: histogram, then the bucket where the target is reached
                  (top_k: keys of scores count one each; top_p: keys of probabilities weigh what they are worth)
    pick      ->  sum of what is left in each part; then the part, and in it the id, where the chance falls

A launch for top_k or top_p is left out where no row sets it. A row that asks for nothing costs a program that
ends at once. Between the launches a row is `STATE` numbers; `arrived` and the histogram are zero again after.
Measured and reasoned in docs/log/0007.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenspeed.kernels.needs import AtLeast, Needs
from tokenspeed.kernels.settings import COLUMNS, NARROW_MAX, Column
from tokenspeed.kernels.spec import Band, Kernel, Plain
from tokenspeed.kernels.triton.step import cut
from tokenspeed.kernels.workspace import counters

BLOCK = 1024
PROGRAMS = 264
"""Rows are cut until there are about this many programs."""
ADJUST_BLOCK = 2048
BUCKETS = tl.constexpr(2048)
LEVELS = ((21, 11), (10, 11), (0, 10))
"""(shift, bits) of the digits of a key, highest first."""
STATE = 8

_BEST = tl.constexpr(0)  # key of the largest score: its bits in order, then the lowest id
_K_KEY = tl.constexpr(1)  # threshold of top_k, as far as it is known
_K_ABOVE = tl.constexpr(2)  # tokens above it
_TIES = tl.constexpr(3)  # tokens at it
_P_KEY = tl.constexpr(4)  # threshold of top_p; behind it, as behind that of top_k, what lies above it
_P_TARGET = tl.constexpr(6)

_WIDTH = tl.constexpr(COLUMNS)
_TEMPERATURE = tl.constexpr(int(Column.TEMPERATURE))
_TOP_K = tl.constexpr(int(Column.TOP_K))
_TOP_P = tl.constexpr(int(Column.TOP_P))
_MIN_P = tl.constexpr(int(Column.MIN_P))
_PRESENCE = tl.constexpr(int(Column.PRESENCE))
_FREQUENCY = tl.constexpr(int(Column.FREQUENCY))
_REPETITION = tl.constexpr(int(Column.REPETITION))
_SEED = tl.constexpr(int(Column.SEED))
_LINE = tl.constexpr(int(Column.LINE))
_EDITED = tl.constexpr(int(Column.EDITED))
_LATE_FROM = tl.constexpr(int(Column.LATE_FROM))
_FORCED_FROM = tl.constexpr(int(Column.FORCED_FROM))
_NARROW_MAX = tl.constexpr(NARROW_MAX)
_WEIGHT_ONE = tl.constexpr(2.0**40)
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _adjust(
    logits, vocab, slots, positions, settings, counts, in_prompt, edit_ids, edit_values, scores,
    EDITS: tl.constexpr, EDITS_PADDED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    wish = settings + slot * _WIDTH
    start = tl.program_id(1) * SIZE
    id = start + tl.arange(0, SIZE)
    inside = id < vocab
    score = tl.load(logits + row * vocab + id, inside, 0.0)
    line = tl.load(wish + _LINE).to(tl.int64)
    if line >= 0:
        count = tl.load(counts + line * vocab + id, inside, 0)
        asked = tl.load(in_prompt + line * vocab + id, inside, 0) != 0
        rate = tl.where((count > 0) | asked, tl.load(wish + _REPETITION).to(tl.float32), 1.0)
        score = tl.where(score > 0, tl.div_rn(score, rate), score * rate)
        score = score - tl.load(wish + _FREQUENCY).to(tl.float32) * count.to(tl.float32)
        score = score - tl.load(wish + _PRESENCE).to(tl.float32) * (count > 0).to(tl.float32)
    tl.store(scores + row * vocab + id, score, inside)
    if EDITS > 0:  # noqa: SIM102 - known when compiled
        if tl.load(wish + _EDITED) > 0:
            tl.debug_barrier()  # the scores of this part are about to be read by other threads
            edit = tl.arange(0, EDITS_PADDED)
            edited = tl.load(edit_ids + slot * EDITS + edit, edit < EDITS, -1)
            mine = (edited >= start) & (edited < start + SIZE)
            late = (tl.load(positions + row) >= tl.load(wish + _LATE_FROM)).to(tl.int64)
            value = tl.load(edit_values + (slot * 2 + late) * EDITS + edit, mine, 0.0)
            place = scores + row * vocab + edited
            tl.store(place, tl.load(place, mine, 0.0) + value, mine)


@triton.jit
def _mask(scores, vocab, lines, bits, words, out, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    id = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = id < vocab
    score = tl.load(scores + row * vocab + id, inside, 0.0)
    line = tl.load(lines + row).to(tl.int64)
    if line >= 0:
        word = tl.load(bits + line * words + (id >> 5), inside, 0)
        faulty = (score != score) | (score == float("inf"))
        score = tl.where((((word >> (id & 31)) & 1) != 0) | faulty, score, float("-inf"))
    tl.store(out + row * vocab + id, score, inside)


@triton.jit
def _score_keys(score):
    """32-bit keys in the order of scores, as int64; not a number is the largest."""
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    ordered = tl.where(score != score, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return ordered.to(tl.int64) + 0x80000000


@triton.jit
def _best_score(best):
    """The score in the key that `_maximum` left."""
    ordered = ((best >> 31) - 0x80000000).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _wants(chosen, wish):
    """(takes part, draws at random)."""
    random = tl.load(wish + _TEMPERATURE) > 0
    adjusted = (tl.load(wish + _LINE) >= 0) | (tl.load(wish + _EDITED) > 0)
    return (tl.load(chosen) >= 0) & (random | adjusted), random


@triton.jit
def _maximum(
    scores,
    vocab,
    slots,
    settings,
    chosen,
    state,
    PART: tl.constexpr,
    SIZE: tl.constexpr,
    FIELDS: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wish = settings + tl.load(slots + row) * _WIDTH
    wants, _ = _wants(chosen + row, wish)
    if wants:
        best = tl.zeros((SIZE,), tl.int64)
        for start in range(part * PART, part * PART + PART, SIZE):
            id = start + tl.arange(0, SIZE)
            score = tl.load(scores + row * vocab + id, id < vocab, 0.0)
            key = (_score_keys(score) << 31) | (0x7FFFFFFF - id).to(tl.int64)
            best = tl.maximum(best, tl.where(id < vocab, key, 0))
        tl.atomic_max(state + row * FIELDS + _BEST, tl.max(best, 0), sem="relaxed")


@triton.jit
def _likely(score, best, temperature):
    """Probability over that of the likeliest."""
    likely = tl.exp(tl.div_rn(score - best, temperature))
    return tl.where(likely != likely, 0.0, likely)


@triton.jit
def _ties_before(scores, vocab, key, part_start, SIZE: tl.constexpr):
    """How many scores of a row before `part_start` have this key."""
    found = 0
    for start in range(0, part_start, SIZE):
        id = start + tl.arange(0, SIZE)
        score = tl.load(scores + id, id < vocab, 0.0)
        found += tl.sum(((id < vocab) & (_score_keys(score) == key)).to(tl.int32), 0)
    return found


@triton.jit
def _kept(score, inside, k_key, ties_kept, ties_seen):
    """(what top_k keeps of a block, ties seen with it); `ties_kept` -1 keeps them all."""
    key = _score_keys(score)
    tie = inside & (key == k_key)
    rank = ties_seen + tl.cumsum(tie.to(tl.int32), 0)
    kept = inside & ((key > k_key) | (tie & ((ties_kept < 0) | (rank <= ties_kept))))
    return kept, ties_seen + tl.sum(tie.to(tl.int32), 0)


@triton.jit
def _cut(state, wish, vocab):
    """(threshold key of top_k, ties it keeps, -1 for all); key 0 where top_k is off."""
    top_k = tl.load(wish + _TOP_K).to(tl.int64)
    on = top_k < vocab
    k_key = tl.where(on, tl.load(state + _K_KEY), 0)
    left = top_k - tl.load(state + _K_ABOVE)
    exact = on & (top_k <= _NARROW_MAX) & (left < tl.load(state + _TIES))
    return k_key, tl.where(exact, left, -1).to(tl.int32)


@triton.jit
def _conclude(
    state,
    histogram,
    target_or_share,
    KEY: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    WEIGHED: tl.constexpr,
):
    """The last of a row: find the bucket where the target is reached, and clear the histogram."""
    bucket = tl.arange(0, BUCKETS)
    held = tl.load(histogram + bucket, cache_modifier=".cg")
    tl.store(histogram + bucket, tl.zeros((BUCKETS,), tl.int64))
    above = tl.load(state + KEY + 1)
    if WEIGHED:
        if SHIFT + BITS == 32:
            wanted = tl.ceil(tl.sum(held, 0).to(tl.float64) * target_or_share).to(tl.int64)
            target = tl.maximum(wanted, 1)
            tl.store(state + _P_TARGET, target)
        else:
            target = tl.load(state + _P_TARGET)
    else:
        target = target_or_share.to(tl.int64)
    at_least = tl.cumsum(held, 0, reverse=True) + above
    digit = tl.maximum(tl.sum((at_least >= target).to(tl.int64), 0) - 1, 0)
    tl.store(state + KEY, (tl.load(state + KEY) << BITS) | digit)
    tl.store(state + KEY + 1, above + tl.sum(tl.where(bucket > digit, held, 0), 0))
    if not WEIGHED:
        tl.store(state + _TIES, tl.sum(tl.where(bucket == digit, held, 0), 0))


@triton.jit
def _search(
    scores, vocab, slots, settings, chosen, state, histogram, arrived,
    PART: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr, FIELDS: tl.constexpr,
    SHIFT: tl.constexpr, BITS: tl.constexpr, WEIGHED: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wish = settings + tl.load(slots + row) * _WIDTH
    wants, random = _wants(chosen + row, wish)
    if WEIGHED:
        target = tl.load(wish + _TOP_P)
        wants = wants & random & (target < 1)
    else:
        target = tl.load(wish + _TOP_K)
        wants = wants & random & (target < vocab)
    if wants:
        mine, buckets = state + row * FIELDS, histogram + row * BUCKETS
        scores += row * vocab
        prefix = tl.load(mine + KEY)
        best = _best_score(tl.load(mine + _BEST))
        temperature = tl.load(wish + _TEMPERATURE).to(tl.float32)
        k_key, ties_kept = _cut(mine, wish, vocab)
        ties_seen = 0
        if WEIGHED:  # noqa: SIM102 - known when compiled
            if ties_kept >= 0:
                ties_seen = _ties_before(scores, vocab, k_key, part * PART, SIZE)
        for start in range(part * PART, part * PART + PART, SIZE):
            id = start + tl.arange(0, SIZE)
            counted = id < vocab
            score = tl.load(scores + id, counted, 0.0)
            if WEIGHED:
                likely = _likely(score, best, temperature)
                counted, ties_seen = _kept(score, counted, k_key, ties_kept, ties_seen)
                weight = (likely * _WEIGHT_ONE).to(tl.int64)
                key = likely.to(tl.int32, bitcast=True).to(tl.int64)
                counted = counted & (weight > 0)
            else:
                weight = tl.full((SIZE,), 1, tl.int64)
                key = _score_keys(score)
            if SHIFT + BITS < 32:
                counted = counted & ((key >> (SHIFT + BITS)) == prefix)
            tl.atomic_add(buckets + ((key >> SHIFT) & ((1 << BITS) - 1)), weight, counted, sem="relaxed")
        tl.debug_barrier()
        if tl.atomic_add(arrived + row, 1, sem="acq_rel") == PARTS - 1:
            _conclude(mine, buckets, target, KEY, SHIFT, BITS, WEIGHED)
            tl.store(arrived + row, 0)


@triton.jit
def _weights(
    scores,
    vocab,
    start,
    best,
    temperature,
    k_key,
    ties_kept,
    ties_seen,
    p_key,
    min_p,
    SIZE: tl.constexpr,
):
    """(ids, weights of what is left, ties seen) of one block of a row."""
    id = start + tl.arange(0, SIZE)
    inside = id < vocab
    score = tl.load(scores + id, inside, 0.0)
    likely = _likely(score, best, temperature)
    kept, ties_seen = _kept(score, inside, k_key, ties_kept, ties_seen)
    kept = kept & (likely.to(tl.int32, bitcast=True).to(tl.int64) >= p_key) & (likely >= min_p)
    return id, tl.where(kept, (likely * _WEIGHT_ONE).to(tl.int64), 0), ties_seen


@triton.jit
def _mixed(x):
    """The finaliser of SplitMix64, as `ref.chance` has it."""
    x = x + _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit
def _chance(seed, position):
    """In [0, 1), of a seed and a position alone."""
    counter = _mixed(seed.to(tl.uint64)) + position.to(tl.uint64) * _GOLDEN
    return (_mixed(counter) >> 11).to(tl.int64).to(tl.float64) * (2.0**-53)


@triton.jit
def _pick(
    scores, vocab, slots, positions, settings, seeds, chosen, state, sums, arrived,
    PART: tl.constexpr, PARTS: tl.constexpr, PARTS_PADDED: tl.constexpr, SIZE: tl.constexpr,
    FIELDS: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    wish = settings + slot * _WIDTH
    wants, random = _wants(chosen + row, wish)
    mine = state + row * FIELDS
    best_key = tl.load(mine + _BEST)
    if wants & (part == 0) & (random == 0):
        tl.store(chosen + row, (0x7FFFFFFF - (best_key & 0x7FFFFFFF)).to(tl.int32))
    if wants & random:
        scores += row * vocab
        best = _best_score(best_key)
        temperature = tl.load(wish + _TEMPERATURE).to(tl.float32)
        min_p = tl.load(wish + _MIN_P).to(tl.float32)
        p_key = tl.where(tl.load(wish + _TOP_P) < 1, tl.load(mine + _P_KEY), 0)
        k_key, ties_kept = _cut(mine, wish, vocab)
        ties_seen = 0
        if ties_kept >= 0:
            ties_seen = _ties_before(scores, vocab, k_key, part * PART, SIZE)
        total = tl.zeros((SIZE,), tl.int64)
        for start in range(part * PART, part * PART + PART, SIZE):
            id, weight, ties_seen = _weights(
                scores, vocab, start, best, temperature, k_key, ties_kept, ties_seen, p_key, min_p, SIZE
            )
            total += weight
        tl.store(sums + row * PARTS + part, tl.sum(total, 0))
        tl.debug_barrier()
        if tl.atomic_add(arrived + row, 1, sem="acq_rel") == PARTS - 1:
            tl.store(arrived + row, 0)
            other = tl.arange(0, PARTS_PADDED)
            held = tl.load(sums + row * PARTS + other, other < PARTS, 0, cache_modifier=".cg")
            whole = tl.sum(held, 0)
            chance = _chance(tl.load(seeds + slot * _WIDTH + _SEED), tl.load(positions + row))
            aim = tl.minimum((whole.to(tl.float64) * chance).to(tl.int64), whole - 1)
            reached = tl.cumsum(held, 0)
            place = tl.sum((reached <= aim).to(tl.int32), 0)
            aim -= tl.sum(tl.where(other < place, held, 0), 0)
            place = tl.minimum(place, PARTS - 1)
            ties_seen = 0
            if ties_kept >= 0:
                ties_seen = _ties_before(scores, vocab, k_key, place * PART, SIZE)
            found = 0
            for start in range(place * PART, place * PART + PART, SIZE):
                id, weight, ties_seen = _weights(
                    scores,
                    vocab,
                    start,
                    best,
                    temperature,
                    k_key,
                    ties_kept,
                    ties_seen,
                    p_key,
                    min_p,
                    SIZE,
                )
                before = tl.cumsum(weight, 0) - weight
                hit = (weight > 0) & (before <= aim) & (aim < before + weight)
                found += tl.sum(tl.where(hit, id, 0), 0)
                aim -= tl.sum(weight, 0)
            tl.store(chosen + row, found)


@triton.jit
def _note(chosen, slots, positions, settings, forced, forced_width, counts, vocab, last_tokens):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    wish = settings + slot * _WIDTH
    token = tl.load(chosen + row)
    begin = tl.load(wish + _FORCED_FROM).to(tl.int64)
    place = tl.load(positions + row) - begin
    inside = (begin >= 0) & (place >= 0) & (place < forced_width) & (token >= 0)
    recorded = tl.load(forced + slot * forced_width + place, inside, -1)
    token = tl.where(recorded >= 0, recorded, token)
    tl.store(chosen + row, token)
    tl.store(last_tokens + slot, tl.maximum(token, 0).to(tl.int64))
    line = tl.load(wish + _LINE).to(tl.int64)
    counted = counts + line * vocab + token
    noted = (line >= 0) & (token >= 0)
    tl.store(counted, tl.load(counted, noted, 0) + 1, noted)


def adjust(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    counts: Tensor,
    in_prompt: Tensor,
    edit_ids: Tensor,
    edit_values: Tensor,
) -> Tensor:
    """Return the scores of rows: penalised, then edited."""
    rows, vocab = logits.shape
    scores = torch.empty_like(logits)
    edits = edit_ids.shape[1]
    grid = (rows, triton.cdiv(vocab, ADJUST_BLOCK))
    _adjust[grid](
        logits, vocab, slots, positions, settings, counts, in_prompt.view(torch.int8), edit_ids, edit_values,
        scores, edits, triton.next_power_of_2(max(1, edits)), ADJUST_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    return scores


def mask(scores: Tensor, lines: Tensor, bits: Tensor) -> Tensor:
    """Return scores with what the rows' bits rule out at minus infinity."""
    rows, vocab = scores.shape
    out = torch.empty_like(scores)
    grid = (rows, triton.cdiv(vocab, ADJUST_BLOCK))
    _mask[grid](scores, vocab, lines, bits, bits.shape[1], out, ADJUST_BLOCK)
    return out


def draw(
    scores: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    chosen: Tensor,
    *,
    top_k: bool = True,
    top_p: bool = True,
) -> Tensor:
    """Choose for each row that wants more than its likeliest logit; others, and rows at fault, stay."""
    rows, vocab = scores.shape
    assert scores.is_contiguous(), "want scores [S, V] contiguous"
    assert scores.dtype == torch.float32, f"want float32 scores, got {scores.dtype}"
    part, parts = cut(vocab, rows, 2 * BLOCK, PROGRAMS)
    # One allocation that is zero: a row's state, then its histogram, then the sums of its parts.
    memory = torch.zeros(rows * (STATE + BUCKETS.value + parts), dtype=torch.int64, device=scores.device)
    state, histogram, sums = memory.split([rows * STATE, rows * BUCKETS.value, rows * parts])
    arrived, grid = counters(scores.device), (rows, parts)
    _maximum[grid](scores, vocab, slots, settings, chosen, state, part, BLOCK, STATE)
    for wanted, weighed, key in ((top_k, False, _K_KEY.value), (top_p, True, _P_KEY.value)):
        for shift, bits in LEVELS if wanted else ():
            _search[grid](
                scores, vocab, slots, settings, chosen, state, histogram, arrived,
                part, parts, BLOCK, STATE, shift, bits, weighed, key, enable_fp_fusion=False,
            )  # fmt: skip
    _pick[grid](
        scores, vocab, slots, positions, settings, settings.view(torch.int64), chosen, state, sums, arrived,
        part, parts, triton.next_power_of_2(parts), BLOCK, STATE, enable_fp_fusion=False,
    )  # fmt: skip
    return chosen


def note(
    chosen: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    forced: Tensor,
    counts: Tensor,
    last_tokens: Tensor,
) -> Tensor:
    """Put recorded tokens in place of chosen ones, and note what rows say: as last, and in the history."""
    _note[(chosen.shape[0],)](
        chosen, slots, positions, settings, forced, forced.shape[1], counts, counts.shape[1], last_tokens,
        num_warps=1,
    )  # fmt: skip
    return chosen


_NEEDS = Needs(sm=AtLeast((8, 0)))
KERNELS = (
    Kernel("sampling.adjust", "triton", _NEEDS, Band.FAST, Plain(adjust)),
    Kernel("sampling.mask", "triton", _NEEDS, Band.FAST, Plain(mask)),
    Kernel("sampling.draw", "triton", _NEEDS, Band.FAST, Plain(draw)),
    Kernel("sampling.note", "triton", _NEEDS, Band.FAST, Plain(note)),
)
