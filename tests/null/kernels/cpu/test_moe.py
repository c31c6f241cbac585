# SPDX-License-Identifier: MIT
import pytest
import torch

from tests.null.kernels.cpu.conftest import near
from tokenspeed.kernels.cpu import moe
from tokenspeed.kernels.ref import moe as ref

BF16, FP32 = torch.bfloat16, torch.float32


def drawn(dtype: torch.dtype, tokens: int, experts: int, top_k: int, width: int, ffn: int):
    w13 = (torch.randn(experts, 2 * ffn, width) * width**-0.5).to(dtype)
    w2 = (torch.randn(experts, width, ffn) * ffn**-0.5).to(dtype)
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)]).to(torch.int32)
    return torch.randn(tokens, width).to(dtype), ids, torch.rand(tokens, top_k), w13, w2


@pytest.mark.parametrize("format", ["native", "int8"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "width", "ffn"),
    [(1, 8, 2, 64, 48), (5, 16, 4, 40, 17), (50, 4, 2, 33, 32), (20, 3, 3, 64, 64)],
)
def test_experts_agree_with_reference(isa, dtype, format, tokens, experts, top_k, width, ffn):
    x, ids, weights, w13, w2 = drawn(dtype, tokens, experts, top_k, width, ffn)
    out = torch.full((tokens, width), torch.nan, dtype=dtype)
    moe.experts(x, ids, weights, moe.experts_prepare(w13, w2, format=format), out=out)
    near(out, ref.experts(x.double(), ids, weights, ref.experts_prepare(w13, w2, format=format)), dtype)


@pytest.mark.parametrize("format", ["native", "int8"])
def test_token_is_bitwise_the_same_in_any_batch(isa, format):
    x, ids, weights, w13, w2 = drawn(BF16, 40, 6, 2, 64, 48)
    packed = moe.experts_prepare(w13, w2, format=format)
    whole = moe.experts(x, ids, weights, packed)
    for begin, end in ((0, 1), (3, 9), (10, 27), (39, 40)):
        part = slice(begin, end)
        assert torch.equal(moe.experts(x[part], ids[part], weights[part], packed), whole[part])


def test_foreign_experts_are_skipped_and_more_tokens_than_a_chunk_work():
    x, ids, weights, w13, w2 = drawn(FP32, 1100, 4, 2, 16, 16)
    ids[::3, 0] = -1
    ids[1::3, 1] = 4
    kept = torch.where((ids >= 0) & (ids < 4), weights, 0.0)
    wanted = ref.experts(x.double(), ids.clamp(0, 3), kept, ref.experts_prepare(w13, w2))
    near(moe.experts(x, ids, weights, moe.experts_prepare(w13, w2)), wanted, FP32)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("experts", "top_k", "groups", "groups_top"), [(16, 4, 1, 1), (256, 8, 8, 4), (10, 3, 2, 1), (5, 5, 1, 1)]
)
def test_route_agrees_with_reference(isa, scoring, experts, top_k, groups, groups_top):
    options = {
        "top_k": top_k,
        "groups": groups,
        "groups_top": groups_top,
        "scoring": scoring,
        "group_score": "top2_sum" if scoring == "sigmoid" else "max",
        "normalise": scoring == "sigmoid",
        "scale": 2.5,
    }
    for tokens in (1, 70):
        logits = torch.randn(tokens, experts)
        bias = torch.randn(experts) * 0.1 if scoring == "sigmoid" else None
        ids, weights = moe.route(logits, bias, **options)
        wanted_ids, wanted_weights = ref.route(logits, bias, **options)
        assert torch.equal(ids, wanted_ids)
        near(weights, wanted_weights, FP32)


def test_route_prefers_the_lower_expert_among_equals(isa):
    ids, _ = moe.route(
        torch.zeros(1, 8), None, top_k=3, groups=1, groups_top=1, scoring="softmax", group_score="max",
        normalise=True, scale=1.0,
    )  # fmt: skip
    assert ids.tolist() == [[0, 1, 2]]
