# SPDX-License-Identifier: MIT
import pytest
import torch

from tests.null.kernels.cpu.conftest import near
from tokenspeed.kernels.cpu import pointwise, rope
from tokenspeed.kernels.ref import dense as ref
from tokenspeed.kernels.ref import rope as ref_rope

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])


@DTYPES
@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (3, 1), (5, 37), (300, 200)])
def test_norms_and_gate_agree_with_reference(isa, dtype, tokens, width):
    x, residual, weight = torch.randn(tokens, width), torch.randn(tokens, width), torch.randn(width)
    x, residual, weight = x.to(dtype), residual.to(dtype), weight.to(dtype)
    near(pointwise.rms(x, weight, 1e-5), ref.rms(x.double(), weight.double(), 1e-5), dtype)
    wanted, wanted_sum = ref.add_rms(x.double(), residual.double(), weight.double(), 1e-5)
    kept = residual.clone()
    y, total = pointwise.add_rms(x, kept, weight, 1e-5, out=torch.full_like(x, torch.nan))
    assert total is kept
    near(y, wanted, dtype)
    near(total, wanted_sum, dtype)
    gate = torch.randn(tokens, 2 * width).mul(20).to(dtype)
    near(pointwise.silu_mul(gate), ref.silu_mul(gate.double()), dtype)


def test_silu_of_extreme_gates(isa):
    gate = torch.tensor([[-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4, 3.0]])
    x = torch.cat((gate, torch.ones_like(gate)), 1)
    torch.testing.assert_close(pointwise.silu_mul(x), torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30)


@DTYPES
def test_lookup_takes_rows_and_zeros_outside(isa, dtype):
    table = torch.randn(50, 33).to(dtype)
    ids = torch.tensor([0, 49, 7, -1, 50])
    found = pointwise.lookup(ids, table)
    assert torch.equal(found[:3], table[[0, 49, 7]])
    assert not found[3:].any()


@DTYPES
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rot"), [(64, 64), (128, 32), (20, 10)])
@pytest.mark.parametrize("tokens", [1, 30])
def test_gqa_write_rotates_and_writes_in_place(isa, dtype, interleaved, dim, rot, tokens):
    fused = torch.randn(tokens, 8, dim).to(dtype)
    cos_sin, positions, places = (
        torch.randn(99, rot),
        torch.randint(0, 99, (tokens,)),
        torch.randperm(80)[:tokens],
    )
    norms = [torch.randn(dim).to(dtype) for _ in "qk"]
    for q_norm, k_norm in (norms, (None, None)):
        q, k, v = fused.clone().split((4, 2, 2), 1)
        arenas = [torch.full((5, 16, 2, dim), 7.0, dtype=dtype) for _ in "kv"]
        wide_arenas = [a.double() for a in arenas]
        wanted = ref_rope.gqa_write(
            q.double(), k.double(), v.double(), cos_sin, positions, places, *wide_arenas, q_norm, k_norm,
            1e-6, interleaved=interleaved,
        )  # fmt: skip
        out = rope.gqa_write(
            q, k, v, cos_sin, positions, places, *arenas, q_norm, k_norm, 1e-6, interleaved=interleaved, out=q
        )
        near(out, wanted, dtype)
        for arena, wide_arena in zip(arenas, wide_arenas, strict=True):
            near(arena, wide_arena, dtype)


@DTYPES
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("latent", "turning"), [(512, 64), (40, 10)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_mla_write_norms_rotates_and_writes(isa, dtype, interleaved, latent, turning, tokens):
    q = torch.randn(tokens, 4, 16 + turning).to(dtype)[..., 16:]
    source = torch.randn(tokens, latent + turning).to(dtype)
    weight = torch.randn(latent).to(dtype)
    cos_sin, positions, places = (
        torch.randn(99, turning),
        torch.randint(0, 99, (tokens,)),
        torch.randperm(80)[:tokens],
    )
    arena = torch.full((5, 16, latent + turning), 7.0, dtype=dtype)
    wide_arena = arena.double()
    wanted = ref_rope.mla_write(
        q.double(), source[:, :latent].double(), source[:, latent:].double(), weight, 1e-6, cos_sin,
        positions, places, wide_arena, interleaved=interleaved,
    )  # fmt: skip
    out = rope.mla_write(
        q,
        source[:, :latent],
        source[:, latent:],
        weight,
        1e-6,
        cos_sin,
        positions,
        places,
        arena,
        interleaved=interleaved,
    )
    near(out, wanted, dtype)
    near(arena, wide_arena, dtype)
