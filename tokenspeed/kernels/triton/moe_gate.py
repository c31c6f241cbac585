# SPDX-License-Identifier: MIT
"""`moe.gate` and `moe.route`: scores of all experts, groups, choice and weights of a token in one launch.

In: x [T, C] (gate) or logits [T, E] (route). Out: ids [T, k] int32, weights [T, k] float32; a gate's token of
padding (a negative write index) chooses nothing. Products of
16-bit numbers are exact and sums float32, so a gate that came from a 16-bit checkpoint is held in that dtype
and loses nothing; any other is held and multiplied in float32.

Few tokens are cut along C, so that a matrix of a megabyte is read by many programs: each leaves its share of
the logits, the last of a tile of tokens to arrive adds them in order and chooses. Many tokens have a program
per tile and no shares. Equal scores: the lower id, as in the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tokenspeed.kernels.triton.launch import early
from tokenspeed.kernels.workspace import COUNTERS, counters

TILE_TOKENS = 16
"""Tokens of a program: the least the matrix units take."""
SHARES_TOKENS = 1024
"""Up to so many tokens the programs are too few without cutting along C."""
PROGRAMS = 128
"""How many programs fill the device, about."""


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
def _choose(
    logits, bias, write_index, ids, weights, token, tokens, scale, PADDED: tl.constexpr,
    E: tl.constexpr, TOP: tl.constexpr, G: tl.constexpr, G_TOP: tl.constexpr, SIGMOID: tl.constexpr,
    TOP2: tl.constexpr, BIASED: tl.constexpr, NORMALISE: tl.constexpr, TOKENS: tl.constexpr,
    E_PAD: tl.constexpr, TOP_PAD: tl.constexpr, G_PAD: tl.constexpr,
):  # fmt: skip
    # logits [TOKENS, E_PAD] float32 -> the choices of these tokens, stored.
    expert = tl.arange(0, E_PAD)
    real = (expert < E)[None, :]
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        logits = tl.where(real, logits, float("-inf"))
        scores = tl.exp(logits - tl.max(logits, 1)[:, None])
        scores = scores / tl.sum(scores, 1)[:, None]
    choosing = scores
    if BIASED:
        choosing += tl.load(bias + expert, expert < E, 0.0)[None, :]
    choosing = tl.where(real, choosing, float("-inf"))
    if G_TOP < G:
        choosing = _kept(choosing, G, G_TOP, G_PAD, E, TOP2, TOKENS, E_PAD)
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
    if PADDED:
        real = (tl.load(write_index + token, token < tokens, -1) >= 0)[:, None]
        chosen = tl.where(real, chosen, -1)
        weight = tl.where(real, weight, 0.0)
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
    E_PAD: tl.constexpr, TOP_PAD: tl.constexpr, G_PAD: tl.constexpr,
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
    if EARLY:
        gdc_wait()
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
            for s in tl.range(0, SHARES, loop_unroll_factor=4):
                logits += tl.load(shares + s * plane + at, mask, 0.0, cache_modifier=".cg")
            _choose(
                logits, bias, write_index, ids, weights, token, tokens, scale, PADDED, E, TOP, G, G_TOP,
                SIGMOID, TOP2, BIASED, NORMALISE, TOKENS, E_PAD, TOP_PAD, G_PAD,
            )  # fmt: skip
    else:
        _choose(
            logits, bias, write_index, ids, weights, token, tokens, scale, PADDED, E, TOP, G, G_TOP, SIGMOID,
            TOP2, BIASED, NORMALISE, TOKENS, E_PAD, TOP_PAD, G_PAD,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _route(
    logits, bias, ids, weights, tokens, scale, E: tl.constexpr, TOP: tl.constexpr, G: tl.constexpr,
    G_TOP: tl.constexpr, SIGMOID: tl.constexpr, TOP2: tl.constexpr, BIASED: tl.constexpr,
    NORMALISE: tl.constexpr, TOKENS: tl.constexpr, E_PAD: tl.constexpr, TOP_PAD: tl.constexpr,
    G_PAD: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, E_PAD)
    mask = (token < tokens)[:, None] & (expert < E)[None, :]
    values = tl.load(logits + token[:, None] * E + expert[None, :], mask, 0.0)
    _choose(
        values, bias, ids, ids, weights, token, tokens, scale, False, E, TOP, G, G_TOP, SIGMOID, TOP2, BIASED,
        NORMALISE, TOKENS, E_PAD, TOP_PAD, G_PAD,
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
    shares = 1 if tokens > SHARES_TOKENS else max(1, min(blocks, PROGRAMS // tiles, 32))
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
    tokens, width = x.shape
    experts = w.shape[0]
    padded = max(16, triton.next_power_of_2(experts))
    how = cut(tokens, width, padded, w.itemsize)
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=x.device)
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=x.device)
    many = how.shares > 1
    shares = (
        torch.empty((how.shares, tokens, padded), dtype=torch.float32, device=x.device) if many else weights
    )
    tiles = triton.cdiv(tokens, TILE_TOKENS)
    assert not many or tiles <= COUNTERS
    ahead = early(x.device)
    _gate[(tiles, how.shares)](
        x, x.stride(0), w, weights if bias is None else bias, ids if write_index is None else write_index,
        shares, counters(x.device), ids, weights, tokens, scale, write_index is not None, width, how.span,
        how.depth, how.shares, ahead,
        **_options(experts, top_k, groups, groups_top, scoring, group_score, bias, normalise),
        **({"launch_pdl": True} if ahead else {}),
    )  # fmt: skip
    return ids, weights


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
        "num_warps": 4 if padded <= 128 else 8,
    }
