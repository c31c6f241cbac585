# SPDX-License-Identifier: MIT
"""The references against formulations of another kind: torch's own, complex numbers, loops, hand results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.ref import attention, dense, moe, rope

FP64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Draw(seed).normal(*shape, dtype=torch.float32).double()


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_dense_norm_activation_equal_torch() -> None:
    x, weight, bias = normal(5, 8), normal(6, 8, seed=1), normal(6, seed=2)
    close(dense.dense(x, dense.dense_prepare(weight, bias)), F.linear(x, weight, bias))
    close(dense.rms(x, weight[0], 1e-5), F.rms_norm(x, (8,), weight[0], 1e-5))
    close(dense.silu_mul(x), F.silu(x[:, :4]) * x[:, 4:])
    close(dense.lookup(torch.tensor([2, 0, 2]), weight), weight[[2, 0, 2]])
    y, total = dense.add_rms(x, x + 1, weight[0], 1e-5)
    close(total, 2 * x + 1)
    close(y, F.rms_norm(2 * x + 1, (8,), weight[0], 1e-5))


def test_heads_is_one_product_a_head() -> None:
    x, weight = normal(3, 2, 4), normal(2, 4, 5, seed=1)
    want = torch.stack([x[:, head] @ weight[head] for head in range(2)], 1)
    close(dense.heads(x, weight), want)


def test_int8_error_is_half_a_step_per_channel() -> None:
    weight = normal(7, 33)
    weight[3] = 0
    stored, scale = dense.quantise_int8(weight)
    assert bool(((dense.restored(stored, scale, FP64) - weight).abs() <= scale.double() * 0.50001).all())
    assert stored.abs().amax(-1).tolist() == [127, 127, 127, 0, 127, 127, 127]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_complex_multiplication(interleaved: bool) -> None:
    x, angle = normal(4, 2, 10), normal(4, 3, seed=1)
    turned = rope.rotated(x, torch.cat((angle.cos(), angle.sin()), 1), interleaved)
    real, imaginary = (x[..., 0:6:2], x[..., 1:6:2]) if interleaved else (x[..., :3], x[..., 3:6])
    want = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)[:, None]
    got = (turned[..., 0:6:2], turned[..., 1:6:2]) if interleaved else (turned[..., :3], turned[..., 3:6])
    close(torch.complex(*got), want)
    close(turned[..., 6:], x[..., 6:])


def test_write_puts_each_token_in_its_place_and_nowhere_else() -> None:
    k_arena, v_arena = torch.zeros(3, 4, 1, 6, dtype=FP64), torch.zeros(3, 4, 1, 6, dtype=FP64)
    q, k, v = normal(2, 2, 6), normal(2, 1, 6, seed=1), normal(2, 1, 6, seed=2)
    still = torch.cat((torch.ones(9, 3), torch.zeros(9, 3)), 1)
    place, gain = torch.tensor([9, 2]), torch.full((6,), 2.0, dtype=FP64)
    rotated = rope.gqa_write(
        q, k, v, still, torch.tensor([7, 8]), place, k_arena, v_arena, gain, None, 0.0, interleaved=False
    )
    close(rotated, 2 * F.rms_norm(q, (6,), None, 1e-30))
    close(k_arena.view(12, 6)[place], k[:, 0])
    close(v_arena.view(12, 6)[place], v[:, 0])
    assert int((k_arena.view(12, 6) != 0).any(-1).sum()) == 2


def paged(rows: list[Tensor], block_tokens: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Scatter rows of context [c, ...] over an arena; return arena, table, lengths."""
    lens = [len(row) for row in rows]
    table = Draw(3).table(lens, [1] * len(rows), block_tokens)
    arena = torch.full((table.blocks_total, block_tokens, *rows[0].shape[1:]), torch.nan, dtype=FP64)
    for row, context in enumerate(rows):
        for position, values in enumerate(context):
            arena[table.block_table[row, position // block_tokens], position % block_tokens] = values
    return arena, table.block_table, table.context_lens


def test_gqa_equals_dense_attention_of_torch() -> None:
    contexts, lengths = [9, 4, 13], [3, 4, 1]
    k = [normal(c, 2, 8, seed=c) for c in contexts]
    v = [normal(c, 2, 6, seed=c + 50) for c in contexts]
    q = normal(sum(lengths), 4, 8, seed=99)
    k_arena, block_table, lens = paged(k)
    v_arena, _, _ = paged(v)
    starts = torch.tensor([0, 3, 7, 8])
    got = attention.gqa_extend(q, k_arena, v_arena, block_table, starts, lens, 0.3)
    for row, (context, new) in enumerate(zip(contexts, lengths, strict=True)):
        mask = torch.ones(new, context, dtype=torch.bool).tril(context - new)
        mine = q[int(starts[row]) : int(starts[row + 1])].transpose(0, 1)[None]
        keys, values = k[row].transpose(0, 1)[None], v[row].transpose(0, 1)[None]
        want = F.scaled_dot_product_attention(mine, keys, values, mask, scale=0.3, enable_gqa=True)
        close(got[int(starts[row]) : int(starts[row + 1])], want[0].transpose(0, 1))
    close(attention.gqa_decode(q[[2, 6, 7]], k_arena, v_arena, block_table, lens, 0.3), got[[2, 6, 7]])


def test_absorbed_decode_equals_materialised_extend() -> None:
    latent, rot, nope, value, heads = 8, 4, 6, 5, 3
    arena, block_table, lens = paged([normal(c, latent + rot, seed=c) for c in (5, 11)])
    w_uk, w_uv = normal(heads, nope, latent, seed=1), normal(heads, latent, value, seed=2)
    q = normal(2, heads, nope + rot, seed=3)
    whole = attention.mla_extend(q, arena, w_uk, w_uv, block_table, torch.tensor([0, 1, 2]), lens, 0.2)
    absorbed = dense.heads(q[..., :nope], w_uk)
    inner = attention.mla_decode(absorbed, q[..., nope:], arena, block_table, lens, 0.2)
    close(dense.heads(inner, w_uv), whole)


def test_extend_of_many_equals_one_by_one() -> None:
    arena, block_table, _ = paged([normal(10, 12, seed=1)])
    w_uk, w_uv, q = normal(2, 3, 8, seed=2), normal(2, 8, 5, seed=3), normal(4, 2, 7, seed=4)
    together = attention.mla_extend(
        q, arena, w_uk, w_uv, block_table, torch.tensor([0, 4]), torch.tensor([10]), 0.5
    )
    for token in range(4):
        alone = attention.mla_extend(
            q[token : token + 1],
            arena,
            w_uk,
            w_uv,
            block_table,
            torch.tensor([0, 1]),
            torch.tensor([7 + token]),
            0.5,
        )
        close(alone, together[token : token + 1])


def test_routing_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=FP64)
    ids, weights = moe.route(
        logits,
        None,
        top_k=2,
        groups=1,
        groups_top=1,
        scoring="softmax",
        group_score="max",
        normalise=True,
        scale=2.0,
    )
    assert ids.tolist() == [[0, 1]]
    e = torch.tensor([2.0, 1.0], dtype=FP64).exp()
    close(weights, (2 * e / e.sum())[None])


def test_bias_chooses_but_does_not_weigh() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 3.0]])
    bias = torch.tensor([0.0, 5.0, 0.0, 0.0])
    ids, weights = moe.route(
        logits,
        bias,
        top_k=1,
        groups=1,
        groups_top=1,
        scoring="sigmoid",
        group_score="max",
        normalise=False,
        scale=1.0,
    )
    assert (ids.tolist(), weights.tolist()) == ([[1]], [[0.5]])


@pytest.mark.parametrize(("group_score", "chosen"), [("max", [0, 1]), ("top2_sum", [2, 3])])
def test_groups_are_chosen_by_their_score(group_score: str, chosen: list[int]) -> None:
    logits = torch.tensor([[4.0, -9.0, 3.0, 2.9, 0.0, 0.0]])
    ids, _ = moe.route(
        logits,
        None,
        top_k=2,
        groups=3,
        groups_top=1,
        scoring="sigmoid",
        group_score=group_score,
        normalise=True,
        scale=1.0,
    )
    assert sorted(ids[0].tolist()) == chosen


def test_masked_group_is_never_chosen_even_when_scores_are_negative() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    bias = torch.full((4,), -5.0)
    ids, _ = moe.route(
        logits,
        bias,
        top_k=2,
        groups=2,
        groups_top=1,
        scoring="sigmoid",
        group_score="max",
        normalise=True,
        scale=1.0,
    )
    assert sorted(ids[0].tolist()) == [0, 1]


def test_equal_scores_go_to_the_lower_id() -> None:
    ids, _ = moe.route(
        torch.zeros(3, 64),
        None,
        top_k=4,
        groups=1,
        groups_top=1,
        scoring="softmax",
        group_score="max",
        normalise=True,
        scale=1.0,
    )
    assert ids.tolist() == [[0, 1, 2, 3]] * 3


def test_experts_equal_a_loop_over_tokens() -> None:
    x, w13, w2 = normal(4, 6), normal(3, 10, 6, seed=1), normal(3, 6, 5, seed=2)
    ids = torch.tensor([[0, 2], [2, 1], [0, 1], [1, 0]], dtype=torch.int32)
    weights = normal(4, 2, seed=3)
    want = torch.zeros_like(x)
    for token in range(4):
        for place in range(2):
            expert = int(ids[token, place])
            gate, up = (w13[expert] @ x[token]).chunk(2)
            want[token] += weights[token, place] * (w2[expert] @ (F.silu(gate) * up))
    close(moe.experts(x, ids, weights, moe.experts_prepare(w13, w2)), want)


def test_bfloat16_is_computed_wide_and_rounded_once() -> None:
    x, weight = normal(3, 512).bfloat16(), normal(4, 512, seed=1).bfloat16()
    got = dense.dense(x, dense.dense_prepare(weight))
    assert got.dtype == torch.bfloat16
    exact = (x.double() @ weight.double().T).bfloat16()
    assert bool(((got.double() - exact.double()).abs() <= exact.double().abs() * 2**-7).all())


@pytest.mark.parametrize("shape", [(128, 256), (300, 200), (1, 5), (3, 129, 130)])
def test_fp8_block_is_within_half_a_step_of_the_weight(shape: tuple[int, ...]) -> None:
    """e4m3 has three bits of fraction; below 2**-6 of the scale its steps are all 2**-9."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    weight[..., 0, :3] *= 100  # one block of another size
    stored, scale = dense.quantise_fp8_block(weight)
    assert stored.dtype is torch.float8_e4m3fn
    assert scale.shape == (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    step = dense.per_element(scale, weight.shape) * 2**-9
    error = (dense.restored(stored, scale, torch.float64) - weight).abs()
    assert bool((error <= torch.maximum(weight.abs() / 16, step / 2) * 1.0001).all())


def test_dense_multiplies_by_what_fp8_block_means() -> None:
    x, weight = normal(5, 200), normal(300, 200, seed=1)
    stored, scale = dense.quantise_fp8_block(weight)
    meant = torch.empty_like(weight)
    for i in range(3):
        for j in range(2):
            at = (slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128))
            meant[at] = stored[at].double() * scale[i, j]
    close(dense.dense(x, dense.dense_prepare(stored, None, scale, format="fp8_block")), F.linear(x, meant))
