# SPDX-License-Identifier: MIT
"""A mixture of Moonlight's shape on the GPU: right in every regime, repeatable, replayable, blind to padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tokenspeed import kernels
from tokenspeed.kernels.workspace import counters

EXPERTS, TOP_K, WIDTH, FFN, SHARED = 64, 6, 2048, 1408, 2


@dataclass(frozen=True, slots=True)
class Layer:
    """One mixture, its weights as loaded, and the call that is bound to them."""

    weights: tuple[Tensor, ...]
    run: Callable[[Tensor, Tensor, Tensor], Tensor]

    def expected(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """One token, in float64."""
        total = torch.zeros(WIDTH, dtype=torch.float64, device="cuda")
        chosen = [
            (float(w), *(each[i] for each in self.weights[:2])) for w, i in zip(weights, ids, strict=True)
        ]
        for weight, w13, w2 in (*chosen, (1.0, *self.weights[2:])):
            gate, up = (w13.double() @ x.double()).chunk(2)
            total += weight * (w2.double() @ (torch.nn.functional.silu(gate) * up))
        return total


@pytest.fixture(scope="module")
def layer() -> Layer:
    torch.manual_seed(0)
    bound = kernels.bind(
        "moe.experts", kernels.describe("cuda"), dtype=torch.bfloat16, experts=EXPERTS, top_k=TOP_K,
        width=WIDTH, ffn=FFN, shared=SHARED,
    )  # fmt: skip
    shapes = (
        (EXPERTS, 2 * FFN, WIDTH),
        (EXPERTS, WIDTH, FFN),
        (2 * SHARED * FFN, WIDTH),
        (WIDTH, SHARED * FFN),
    )
    weights = tuple(
        torch.empty(s, dtype=torch.bfloat16, device="cuda").normal_(std=s[-1] ** -0.5) for s in shapes
    )
    prepared = bound.prepare(*weights)
    return Layer(weights, lambda x, ids, w: bound(x, ids, w, prepared))


def drawn(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.rand(tokens, EXPERTS, device="cuda").argsort(-1)[:, :TOP_K].to(torch.int32).contiguous()
    x = torch.randn(tokens, WIDTH, device="cuda").bfloat16()
    return x, ids, torch.rand(tokens, TOP_K, device="cuda").softmax(-1)


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 40, 64, 65, 300, 2500])
def test_every_regime_is_right_and_repeats(layer: Layer, tokens: int) -> None:
    x, ids, weights = drawn(tokens)
    got = layer.run(x, ids, weights)
    for token in {0, tokens // 2, tokens - 1}:
        want = layer.expected(x[token], ids[token], weights[token])
        assert bool(((got[token].double() - want).abs() <= 8e-3 + 1.6e-2 * want.abs()).all())
    assert torch.equal(layer.run(x, ids, weights), got)
    assert not counters(x.device).any()


@pytest.mark.parametrize("tokens", [1, 16, 64, 300])
def test_a_graph_replays_new_choices_and_skips_padding(layer: Layer, tokens: int) -> None:
    x, ids, weights = drawn(tokens)
    layer.run(x, ids, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer.run(x, ids, weights)
    for values in (drawn(tokens), drawn(tokens)):
        for held, new in zip((x, ids, weights), values, strict=True):
            held.copy_(new)
        graph.replay()
        assert torch.equal(out, layer.run(x, ids, weights))
    ids.fill_(-1)
    graph.replay()
    assert torch.isfinite(out).all()
