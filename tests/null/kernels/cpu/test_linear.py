# SPDX-License-Identifier: MIT
import pytest
import torch

from tests.null.kernels.cpu.conftest import near
from tokenspeed.kernels.cpu import linear
from tokenspeed.kernels.ref import dense as ref

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("format", ["native", "int8"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (1, 1), (33, 17), (127, 65), (515, 100), (130, 1)])
def test_dense_agrees_with_plain_torch(isa, dtype, format, inputs, outputs):
    weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
    packed, plain = (
        linear.dense_prepare(weight, bias, format=format),
        ref.dense_prepare(weight, bias, format=format),
    )
    for tokens in (1, 2, 5, 12, 13, 16, 17, 40):
        x = torch.randn(tokens, inputs).to(dtype)
        out = torch.full((tokens, outputs), torch.nan, dtype=dtype)
        assert linear.dense(x, packed, out=out) is out
        near(out, ref.dense(x.double(), plain), dtype)


@pytest.mark.parametrize("format", ["native", "int8"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_dense_row_is_bitwise_the_same_in_any_batch(isa, dtype, format):
    packed = linear.dense_prepare(torch.randn(200, 390).to(dtype), format=format)
    x = torch.randn(64, 390).to(dtype)
    whole = linear.dense(x, packed)
    for count in (1, 2, 3, 7, 12, 13, 16, 25, 48):
        for start in (0, 5, 64 - count):
            assert torch.equal(linear.dense(x[start : start + count], packed), whole[start : start + count])


def test_dense_of_strided_rows_and_float_output(isa):
    packed = linear.dense_prepare(torch.randn(48, 32).to(BF16))
    x = torch.randn(9, 80).to(BF16)[:, 16:48]
    out = torch.empty(9, 48)
    linear.dense(x, packed, out=out)
    assert torch.equal(out.to(BF16), linear.dense(x.contiguous(), packed))


def test_dense_of_no_tokens_is_empty():
    packed = linear.dense_prepare(torch.randn(48, 32))
    assert linear.dense(torch.empty(0, 32), packed).shape == (0, 48)


def test_dense_refuses_what_does_not_fit():
    packed = linear.dense_prepare(torch.randn(48, 32).to(BF16))
    with pytest.raises(ValueError, match=r"x must be \[T, 32\]"):
        linear.dense(torch.randn(2, 31).to(BF16), packed)
    with pytest.raises(ValueError, match="bfloat16"):
        linear.dense(torch.randn(2, 32), packed)
    with pytest.raises(ValueError, match="out"):
        linear.dense(torch.randn(2, 32).to(BF16), packed, out=torch.empty(2, 47, dtype=BF16))


def test_int8_error_of_bf16_activations_is_that_of_the_weights():
    weight, x = torch.randn(256, 1024).to(BF16), torch.randn(8, 1024).to(BF16)
    x[:, ::97] *= 100  # outliers, as activations have them
    plain = ref.dense_prepare(weight, format="int8")
    wanted = ref.dense(x.double(), plain)
    ours = linear.dense(x, linear.dense_prepare(weight, format="int8"), out=torch.empty(8, 256))
    assert (ours - wanted).abs().max() / wanted.abs().max() < 5e-4


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_heads_agree_with_einsum(isa, dtype):
    for rows, heads, a, b in ((1, 4, 32, 48), (7, 3, 17, 20), (20, 2, 128, 64)):
        weight = torch.randn(heads, a, b).to(dtype)
        x = torch.randn(rows, heads, a + 8).to(dtype)[..., :a]
        near(
            linear.heads(x, linear.heads_prepare(weight)),
            torch.einsum("rha,hab->rhb", x.double(), weight.double()),
            dtype,
        )
