# SPDX-License-Identifier: MIT
"""`moe.gate`, `moe.norm_gate` and `moe.route`: scores of all experts, groups, choice and weights in one launch.

In: x [T, C] (gate) or logits [T, E] (route). Out: ids [T, k] int32, weights [T, k] float32; a gate's token of
padding (a negative write index) chooses nothing. Products of
16-bit numbers are exact and sums float32, so a gate that came from a 16-bit checkpoint is held in that dtype
and loses nothing; any other is held and multiplied in float32.

    few     T <= `FEW`: a program for each expert, which holds the gate's row before x is there; each can normalise
            x for itself, and two of them leave the norm and the new residual behind
    shares  tiles of 16 tokens, cut along C, so that a matrix of a megabyte is read by many programs; each
            leaves its share of the logits
    whole   a program per tile of tokens, no shares

Of `few` and `shares` the last program to arrive adds the shares in order and chooses. Equal scores: the lower
id, as in the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tokenspeed.kernels.triton.launch import early, expect
from tokenspeed.kernels.triton.pointwise import add_rms
from tokenspeed.kernels.workspace import COUNTERS, counters

TILE_TOKENS = 16
"""Tokens of a program: the least the matrix units take."""
FEW = 2
"""Tokens that a program has without the matrix unit (4: 6.9 us, 5.4 with it and a norm apart)."""
SHARES_TOKENS = 1024
"""Up to so many tokens the programs are too few without cutting along C."""
SHARES_MAX = 16
"""All of a tile's shares are on their way at once to the program that adds them."""
PROGRAMS = 128
"""How many programs fill the device, about."""
RANKED_MAX = 1 << 14
"""Comparisons of every expert with every other that a program holds in registers."""


@triton.jit
def _kept(choosing, G: tl.constexpr, G_TOP: tl.constexpr, G_PAD: tl.constexpr, E: tl.constexpr,
          TOP2: tl.constexpr, TOKENS: tl.constexpr, E_PAD: tl.constexpr):  # fmt: skip
    # choosing [TOKENS, E_PAD] with all but the best G_TOP groups at -inf; the lower group among equals.
    expert = tl.arange(0, E_PAD)
    group = tl.arange(0, G_PAD)
    best = tl.full([TOKENS, G_PAD], float("-inf"), tl.float32)
    for g in tl.static_range(G):
        members = tl.where((expert // (E // G) == g)[None, :], choosing, float("-inf"))
        value = tl.max(members, 1)
        if TOP2:
            at = tl.argmax(members, 1)
            value += tl.max(tl.where(expert[None, :] == at[:, None], float("-inf"), members), 1)
        best = tl.where(group[None, :] == g, value[:, None], best)
    kept = tl.zeros([TOKENS, E_PAD], tl.int1)
    for _ in tl.static_range(G_TOP):
        at = tl.argmax(best, 1)
        best = tl.where(group[None, :] == at[:, None], float("-inf"), best)
        kept = kept | (expert[None, :] // (E // G) == at[:, None])
    return tl.where(kept, choosing, float("-inf"))


@triton.jit
def _lift(bias, E: tl.constexpr, E_PAD: tl.constexpr, BIASED: tl.constexpr):
    # What is added to every expert's score before it is chosen [E_PAD].
    expert = tl.arange(0, E_PAD)
    if BIASED:
        lift = tl.load(bias + expert, expert < E, 0.0)
    else:
        lift = tl.zeros([E_PAD], tl.float32)
    return lift


@triton.jit
def _present(write_index, token, tokens, PADDED: tl.constexpr):
    # Which tokens are no padding.
    if PADDED:
        present = tl.load(write_index + token, token < tokens, -1) >= 0
    else:
        present = token < tokens
    return present


@triton.jit
def _choose(
    logits, lift, present, ids, weights, token, tokens, scale,
    E: tl.constexpr, TOP: tl.constexpr, G: tl.constexpr, G_TOP: tl.constexpr, SIGMOID: tl.constexpr,
    TOP2: tl.constexpr, NORMALISE: tl.constexpr, TOKENS: tl.constexpr, E_PAD: tl.constexpr,
    TOP_PAD: tl.constexpr, G_PAD: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    # logits [TOKENS, E_PAD] float32 -> the choices of these tokens, stored; -1 where a token is not `present`.
    expert = tl.arange(0, E_PAD)
    real = (expert < E)[None, :]
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        logits = tl.where(real, logits, float("-inf"))
        scores = tl.exp(logits - tl.max(logits, 1)[:, None])
        scores = scores / tl.sum(scores, 1)[:, None]
    choosing = tl.where(real, scores + lift[None, :], float("-inf"))
    if G_TOP < G:
        choosing = _kept(choosing, G, G_TOP, G_PAD, E, TOP2, TOKENS, E_PAD)
    if TOKENS * E_PAD * E_PAD <= RANKED:
        _choose_ranked(choosing, scores, present, ids, weights, token, tokens, scale, TOP, NORMALISE, E_PAD)
    else:
        _choose_in_turn(
            choosing, scores, present, ids, weights, token, tokens, scale, TOP, NORMALISE, TOKENS, E_PAD, TOP_PAD,
        )  # fmt: skip


@triton.jit
def _choose_ranked(
    choosing, scores, present, ids, weights, token, tokens, scale,
    TOP: tl.constexpr, NORMALISE: tl.constexpr, E_PAD: tl.constexpr,
):  # fmt: skip
    # An expert's place is how many are better: all at once, where few tokens leave room for it.
    expert = tl.arange(0, E_PAD)
    choosing = tl.where(choosing == choosing, choosing, float("-inf"))
    mine, other = choosing[:, :, None], choosing[:, None, :]
    lower = (expert[None, :] < expert[:, None])[None, :, :]
    better = (other > mine) | ((other == mine) & lower)
    place = tl.sum(better.to(tl.int32), 2)
    chosen = place < TOP
    if NORMALISE:
        scores = scores / tl.maximum(tl.sum(tl.where(chosen, scores, 0.0), 1), 1e-20)[:, None]
    id = tl.where(present[:, None], expert[None, :], -1)
    value = tl.where(present[:, None], scores * scale, 0.0)
    to = token[:, None] * TOP + place
    mask = chosen & (token < tokens)[:, None]
    tl.store(ids + to, id, mask)
    tl.store(weights + to, value, mask)


@triton.jit
def _choose_in_turn(
    choosing, scores, present, ids, weights, token, tokens, scale,
    TOP: tl.constexpr, NORMALISE: tl.constexpr, TOKENS: tl.constexpr, E_PAD: tl.constexpr,
    TOP_PAD: tl.constexpr,
):  # fmt: skip
    # The best, the best of the others, and so on.
    expert = tl.arange(0, E_PAD)
    place = tl.arange(0, TOP_PAD)
    chosen = tl.zeros([TOKENS, TOP_PAD], tl.int32)
    weight = tl.zeros([TOKENS, TOP_PAD], tl.float32)
    for k in tl.static_range(TOP):
        at = tl.argmax(choosing, 1)
        here = expert[None, :] == at[:, None]
        score = tl.sum(tl.where(here, scores, 0.0), 1)
        choosing = tl.where(here, float("-inf"), choosing)
        chosen = tl.where(place[None, :] == k, at[:, None], chosen)
        weight = tl.where(place[None, :] == k, score[:, None], weight)
    if NORMALISE:
        weight = weight / tl.maximum(tl.sum(weight, 1), 1e-20)[:, None]
    chosen = tl.where(present[:, None], chosen, -1)
    weight = tl.where(present[:, None], weight, 0.0)
    to = token[:, None] * TOP + place[None, :]
    mask = (token < tokens)[:, None] & (place < TOP)[None, :]
    tl.store(ids + to, chosen, mask)
    tl.store(weights + to, weight * scale, mask)


@triton.jit(do_not_specialize=["tokens"])
def _gate(
    x, x_stride, w, bias, write_index, shares, counters, ids, weights, tokens, scale, PADDED: tl.constexpr,
    C: tl.constexpr, SPAN: tl.constexpr, DEPTH: tl.constexpr, SHARES: tl.constexpr, EARLY: tl.constexpr,
    E: tl.constexpr, TOP: tl.constexpr, G: tl.constexpr, G_TOP: tl.constexpr, SIGMOID: tl.constexpr,
    TOP2: tl.constexpr, BIASED: tl.constexpr, NORMALISE: tl.constexpr, TOKENS: tl.constexpr,
    E_PAD: tl.constexpr, TOP_PAD: tl.constexpr, G_PAD: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    tile = tl.program_id(0)
    share = tl.program_id(1)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, E_PAD)
    depth = share * SPAN + tl.arange(0, DEPTH)
    source = x + token.to(tl.int64)[:, None] * x_stride + depth[None, :]
    gate = w + expert[:, None] * C + depth[None, :]
    logits = tl.zeros([TOKENS, E_PAD], tl.float32)
    matrix = tl.load(gate, (expert < E)[:, None] & (depth < C)[None, :], 0.0)
    lift = _lift(bias, E, E_PAD, BIASED)
    if EARLY:
        gdc_wait()
    present = _present(write_index, token, tokens, PADDED)
    for k in range(0, SPAN, DEPTH):
        inside = (depth < C - k)[None, :]
        activations = tl.load(source + k, (token < tokens)[:, None] & inside, 0.0)
        if k > 0:
            matrix = tl.load(gate + k, (expert < E)[:, None] & inside, 0.0)
        logits = tl.dot(activations.to(matrix.dtype), matrix.T, logits, "ieee")
    if SHARES > 1:
        plane = tokens * E_PAD
        at = token[:, None] * E_PAD + expert[None, :]
        mask = (token < tokens)[:, None] & (expert < E_PAD)[None, :]
        tl.store(shares + share * plane + at, logits, mask)
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
        if arrived == SHARES - 1:
            tl.store(counters + tile, 0)
            logits = tl.zeros([TOKENS, E_PAD], tl.float32)
            for s in tl.static_range(SHARES):
                logits += tl.load(shares + s * plane + at, mask, 0.0, cache_modifier=".cg")
            _choose(
                logits, lift, present, ids, weights, token, tokens, scale, E, TOP, G, G_TOP, SIGMOID, TOP2,
                NORMALISE, TOKENS, E_PAD, TOP_PAD, G_PAD, RANKED,
            )  # fmt: skip
    else:
        _choose(
            logits, lift, present, ids, weights, token, tokens, scale, E, TOP, G, G_TOP, SIGMOID, TOP2,
            NORMALISE, TOKENS, E_PAD, TOP_PAD, G_PAD, RANKED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _gate_few(
    x, x_stride, residual, gain, eps, normed, summed, w, bias, write_index, shares, arrivals, ids, weights,
    tokens, scale, NORMED: tl.constexpr, PADDED: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
    EARLY: tl.constexpr,
    E: tl.constexpr, TOP: tl.constexpr, G: tl.constexpr, G_TOP: tl.constexpr, SIGMOID: tl.constexpr,
    TOP2: tl.constexpr, BIASED: tl.constexpr, NORMALISE: tl.constexpr, TOKENS: tl.constexpr,
    E_PAD: tl.constexpr, TOP_PAD: tl.constexpr, G_PAD: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)[None, :]
    inside = column < C
    row = tl.load(w + program * C + column, inside, 0.0).to(tl.float32)
    if NORMED:
        gains = tl.load(gain + column, inside, 0.0).to(tl.float32)
    lift = _lift(bias, E, E_PAD, BIASED)
    if EARLY:
        gdc_wait()
    token = tl.arange(0, TOKENS)
    present = _present(write_index, token, tokens, PADDED)
    there = (token < tokens)[:, None] & inside
    value = tl.load(x + token[:, None] * x_stride + column, there, 0.0).to(tl.float32)
    if NORMED:
        at = token[:, None] * C + column
        value += tl.load(residual + at, there, 0.0).to(tl.float32)
        if program == 0:
            tl.store(summed + at, value, there)
        value *= tl.rsqrt(tl.sum(value * value, 1) / C + eps)[:, None]
        result = (value * gains).to(x.dtype.element_ty)
        if program == 1 % E:
            tl.store(normed + at, result, there)
        value = result.to(tl.float32)
    tl.store(shares + token * E + program, tl.sum(value * row, 1), token < tokens)
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals, 1, sem="acq_rel")
    if arrived == E - 1:
        tl.store(arrivals, 0)
        expert = tl.arange(0, E_PAD)
        mask = (token < tokens)[:, None] & (expert < E)[None, :]
        logits = tl.load(shares + token[:, None] * E + expert[None, :], mask, 0.0, cache_modifier=".cg")
        _choose(
            logits, lift, present, ids, weights, token, tokens, scale, E, TOP, G, G_TOP, SIGMOID, TOP2,
            NORMALISE, TOKENS, E_PAD, TOP_PAD, G_PAD, RANKED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _route(
    logits, bias, ids, weights, tokens, scale, E: tl.constexpr, TOP: tl.constexpr, G: tl.constexpr,
    G_TOP: tl.constexpr, SIGMOID: tl.constexpr, TOP2: tl.constexpr, BIASED: tl.constexpr,
    NORMALISE: tl.constexpr, TOKENS: tl.constexpr, E_PAD: tl.constexpr, TOP_PAD: tl.constexpr,
    G_PAD: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, E_PAD)
    mask = (token < tokens)[:, None] & (expert < E)[None, :]
    values = tl.load(logits + token[:, None] * E + expert[None, :], mask, 0.0)
    _choose(
        values, _lift(bias, E, E_PAD, BIASED), token < tokens, ids, weights, token, tokens, scale, E, TOP, G, G_TOP,
        SIGMOID, TOP2, NORMALISE, TOKENS, E_PAD, TOP_PAD, G_PAD, RANKED,
    )  # fmt: skip


def gate_prepare(weight: Tensor, *, x_dtype: torch.dtype) -> Tensor:
    """Hold the gate [E, C] in the dtype of the activations where that changes no number, else in float32."""
    narrow = weight.to(x_dtype)
    return (narrow if torch.equal(narrow.to(weight.dtype), weight) else weight).contiguous()


@dataclass(frozen=True, slots=True)
class Cut:
    """How a gate product is cut along C: `shares` spans of `span` channels, `depth` at a time."""

    shares: int
    span: int
    depth: int


def cut(tokens: int, width: int, experts_padded: int, bytes_each: int) -> Cut:
    """Cut so that programs about fill the device, with stages of the gate that fit registers."""
    stage = (1 << 15) // bytes_each // bytes_each
    depth = min(triton.next_power_of_2(width), max(16, stage // experts_padded), 128)
    blocks = triton.cdiv(width, depth)
    tiles = triton.cdiv(tokens, TILE_TOKENS)
    shares = 1 if tokens > SHARES_TOKENS else max(1, min(blocks, PROGRAMS // tiles, SHARES_MAX))
    span = triton.cdiv(blocks, shares) * depth
    return Cut(triton.cdiv(width, span), span, depth)


def gate(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    groups: int,
    groups_top: int,
    scoring: str,
    group_score: str,
    normalise: bool,
    scale: float,
    write_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Score x [T, C] against the gate and choose `top_k` experts of each token that is no padding."""
    tokens, experts = x.shape[0], w.shape[0]
    options = _options(experts, top_k, groups, groups_top, scoring, group_score, bias, normalise)
    if 0 < tokens <= FEW:
        return _run_few(x, None, w, bias, top_k, scale, write_index, options)
    return _run_tiles(x, w, bias, top_k, scale, write_index, options)


@dataclass(frozen=True, slots=True)
class Norm:
    """What goes before a gate: x + residual [T, C] goes to `summed`, its RMS norm to `normed` and the gate."""

    residual: Tensor
    gain: Tensor
    eps: float
    normed: Tensor
    summed: Tensor


def norm_gate(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    w: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    groups: int,
    groups_top: int,
    scoring: str,
    group_score: str,
    normalise: bool,
    scale: float,
    write_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add x to the residual, normalise the sum, and do as `gate` with that; return it and the sum too."""
    tokens, experts = x.shape[0], w.shape[0]
    options = _options(experts, top_k, groups, groups_top, scoring, group_score, bias, normalise)
    if not 0 < tokens <= FEW:
        normed, summed = add_rms(x, residual, norm_weight, eps)
        return *_run_tiles(normed, w, bias, top_k, scale, write_index, options), normed, summed
    fits = x.shape == residual.shape and residual.is_contiguous() and x.stride(1) == 1
    expect(fits, "x and a contiguous residual [T, C]", x, residual)
    norm = Norm(residual, norm_weight, eps, torch.empty_like(residual), torch.empty_like(residual))
    routed = _run_few(x, norm, w, bias, top_k, scale, write_index, options)
    return *routed, norm.normed, norm.summed


def _run_few(
    x: Tensor,
    norm: Norm | None,
    w: Tensor,
    bias: Tensor | None,
    top_k: int,
    scale: float,
    write_index: Tensor | None,
    options: dict[str, int | bool],
) -> tuple[Tensor, Tensor]:
    tokens, width = x.shape
    experts = w.shape[0]
    ids, weights = _chosen(x, top_k)
    before = (None, None, 0.0, None, None)
    if norm is not None:
        before = (norm.residual, norm.gain, norm.eps, norm.normed, norm.summed)
    ahead = early(x.device)
    _gate_few[(experts,)](
        x, x.stride(0), *before, w, bias, write_index,
        torch.empty((tokens, experts), dtype=torch.float32, device=x.device), counters(x.device), ids, weights,
        tokens, scale, norm is not None, write_index is not None, width, triton.next_power_of_2(width), ahead,
        **options | {"TOKENS": triton.next_power_of_2(tokens), "num_warps": 4},
        **({"launch_pdl": True} if ahead else {}),
    )  # fmt: skip
    return ids, weights


def _run_tiles(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    top_k: int,
    scale: float,
    write_index: Tensor | None,
    options: dict[str, int | bool],
) -> tuple[Tensor, Tensor]:
    tokens, width = x.shape
    padded = options["E_PAD"]
    how = cut(tokens, width, padded, w.itemsize)
    ids, weights = _chosen(x, top_k)
    many = how.shares > 1
    shares = (
        torch.empty((how.shares, tokens, padded), dtype=torch.float32, device=x.device) if many else weights
    )
    tiles = triton.cdiv(tokens, TILE_TOKENS)
    assert not many or tiles <= COUNTERS
    ahead = early(x.device)
    _gate[(tiles, how.shares)](
        x, x.stride(0), w, bias, write_index, shares, counters(x.device), ids, weights, tokens, scale,
        write_index is not None, width, how.span, how.depth, how.shares, ahead, **options,
        **({"launch_pdl": True} if ahead else {}),
    )  # fmt: skip
    return ids, weights


def _chosen(x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    ids = torch.empty((x.shape[0], top_k), dtype=torch.int32, device=x.device)
    return ids, torch.empty(ids.shape, dtype=torch.float32, device=x.device)


def route(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    groups: int,
    groups_top: int,
    scoring: str,
    group_score: str,
    normalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Choose `top_k` experts of the best `groups_top` groups by score + bias; weigh them by score alone."""
    tokens, experts = logits.shape
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
    _route[(triton.cdiv(tokens, TILE_TOKENS),)](
        logits, weights if bias is None else bias, ids, weights, tokens, scale,
        **_options(experts, top_k, groups, groups_top, scoring, group_score, bias, normalise),
    )  # fmt: skip
    return ids, weights


def _options(
    experts: int,
    top_k: int,
    groups: int,
    groups_top: int,
    scoring: str,
    group_score: str,
    bias: Tensor | None,
    normalise: bool,
) -> dict[str, int | bool]:
    padded = max(16, triton.next_power_of_2(experts))
    return {
        "E": experts,
        "TOP": top_k,
        "G": groups,
        "G_TOP": groups_top,
        "SIGMOID": scoring == "sigmoid",
        "TOP2": group_score == "top2_sum",
        "BIASED": bias is not None,
        "NORMALISE": normalise,
        "TOKENS": TILE_TOKENS,
        "E_PAD": padded,
        "TOP_PAD": triton.next_power_of_2(top_k),
        "G_PAD": triton.next_power_of_2(groups),
        "RANKED": RANKED_MAX,
        "num_warps": 4 if padded <= 128 else 8,
    }
