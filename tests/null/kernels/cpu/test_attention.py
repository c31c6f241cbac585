# SPDX-License-Identifier: MIT
import itertools

import pytest
import torch

from tests.null.kernels.cpu.conftest import Pages, near
from tokenspeed.kernels.cpu import attention
from tokenspeed.kernels.ref import attention as ref

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])


def starts_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.double() for t in tensors]


@DTYPES
@pytest.mark.parametrize("block_tokens", [16, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (6, 1, 40), (16, 1, 128), (5, 5, 17)])
def test_gqa_decode_agrees_with_reference(isa, dtype, block_tokens, heads, kv_heads, dim):
    pages = Pages.of([1, 63, 64, 65, 700, 1030], block_tokens)
    k, v = (pages.arena(kv_heads, dim, dtype=dtype) for _ in "kv")
    q = torch.randn(6, heads, dim).to(dtype)
    out = torch.full_like(q, torch.nan)
    attention.gqa_decode(q, k, v, pages.table, pages.contexts, dim**-0.5, out=out)
    near(out, ref.gqa_decode(*wide(q, k, v), pages.table, pages.contexts, dim**-0.5), dtype)


@DTYPES
def test_gqa_extend_agrees_with_reference(isa, dtype):
    lengths = [1, 65, 70, 3, 30]
    pages = Pages.of([130, 65, 600, 9, 530], 16)
    k, v = (pages.arena(2, 64, dtype=dtype) for _ in "kv")
    q = torch.randn(sum(lengths), 6, 64).to(dtype)
    out = torch.full_like(q, torch.nan)
    rest = (pages.table, starts_of(lengths), pages.contexts, 0.125)
    attention.gqa_extend(q, k, v, *rest, out=out)
    near(out, ref.gqa_extend(*wide(q, k, v), *rest), dtype)


@DTYPES
def test_gqa_position_is_bitwise_the_same_whole_in_chunks_and_by_decode(isa, dtype):
    context = 1100
    pages = Pages.of([context], 64)
    k, v = (pages.arena(2, 32, dtype=dtype) for _ in "kv")
    q = torch.randn(context, 8, 32).to(dtype)

    def extend(begin: int, end: int) -> torch.Tensor:
        lens = torch.tensor([end], dtype=torch.int32)
        return attention.gqa_extend(q[begin:end], k, v, pages.table, starts_of([end - begin]), lens, 0.2)

    whole = extend(0, context)
    cuts = [0, 1, 64, 200, 513, 900, context]
    for begin, end in itertools.pairwise(cuts):
        assert torch.equal(extend(begin, end), whole[begin:end])
    for position in (0, 5, 63, 64, 511, 512, 1024, 1099):
        lens = torch.tensor([position + 1], dtype=torch.int32)
        alone = attention.gqa_decode(q[position : position + 1], k, v, pages.table, lens, 0.2)
        assert torch.equal(alone[0], whole[position])


@DTYPES
def test_decode_row_is_bitwise_the_same_alone_and_in_a_batch(isa, dtype):
    pages = Pages.of([5, 129, 700, 64, 1500], 64)
    k, v = (pages.arena(2, 64, dtype=dtype) for _ in "kv")
    latents = pages.arena(80, dtype=dtype)
    q, q_latent, q_rope = (torch.randn(5, 4, n).to(dtype) for n in (64, 64, 16))
    gqa = attention.gqa_decode(q, k, v, pages.table, pages.contexts, 0.125)
    mla = attention.mla_decode(q_latent, q_rope, latents, pages.table, pages.contexts, 0.1)
    for row in range(5):
        one = slice(row, row + 1)
        paged = (pages.table[one], pages.contexts[one])
        assert torch.equal(attention.gqa_decode(q[one], k, v, *paged, 0.125)[0], gqa[row])
        assert torch.equal(
            attention.mla_decode(q_latent[one], q_rope[one], latents, *paged, 0.1)[0], mla[row]
        )


@DTYPES
@pytest.mark.parametrize(("heads", "latent", "rope"), [(16, 512, 64), (3, 40, 10), (20, 64, 16)])
def test_mla_decode_agrees_with_reference(isa, dtype, heads, latent, rope):
    pages = Pages.of([1, 64, 65, 1200], 64)
    arena = pages.arena(latent + rope, dtype=dtype)
    q_latent, q_rope = (torch.randn(4, heads, n + 4).to(dtype)[..., :n] for n in (latent, rope))
    scale = (latent + rope) ** -0.5
    out = torch.full((4, heads, latent), torch.nan, dtype=dtype)
    attention.mla_decode(q_latent, q_rope, arena, pages.table, pages.contexts, scale, out=out)
    wanted = ref.mla_decode(*wide(q_latent, q_rope, arena), pages.table, pages.contexts, scale)
    near(out, wanted, dtype)


def mla_extend_inputs(
    dtype: torch.dtype, contexts: list[int], heads: int, latent: int, rope: int, nope: int, value: int
):
    pages = Pages.of(contexts, 16)
    w_uk, w_uv = (torch.randn(heads, *s).to(dtype) * latent**-0.5 for s in ((nope, latent), (latent, value)))
    return pages, pages.arena(latent + rope, dtype=dtype), w_uk, w_uv


@DTYPES
@pytest.mark.parametrize(
    ("heads", "latent", "rope", "nope", "value"), [(4, 64, 16, 32, 48), (3, 40, 10, 18, 20)]
)
def test_mla_extend_agrees_with_reference(isa, dtype, heads, latent, rope, nope, value):
    lengths = [1, 33, 70, 3]
    pages, arena, w_uk, w_uv = mla_extend_inputs(dtype, [130, 33, 600, 9], heads, latent, rope, nope, value)
    q = torch.randn(sum(lengths), heads, nope + rope).to(dtype)
    out = torch.full((sum(lengths), heads, value), torch.nan, dtype=dtype)
    rest = (pages.table, starts_of(lengths), pages.contexts, 0.15)
    attention.mla_extend(q, arena, *attention.mla_pack(w_uk, w_uv), *rest, out=out)
    near(out, ref.mla_extend(*wide(q, arena, w_uk, w_uv), *rest), dtype)


@DTYPES
def test_mla_extend_position_is_bitwise_the_same_whole_and_in_chunks(isa, dtype):
    context = 600
    pages, arena, w_uk, w_uv = mla_extend_inputs(dtype, [context], 2, 64, 16, 32, 32)
    packed = attention.mla_pack(w_uk, w_uv)
    q = torch.randn(context, 2, 48).to(dtype)

    def extend(begin: int, end: int) -> torch.Tensor:
        lens = torch.tensor([end], dtype=torch.int32)
        return attention.mla_extend(
            q[begin:end], arena, *packed, pages.table, starts_of([end - begin]), lens, 0.15
        )

    whole = extend(0, context)
    cuts = [0, 1, 64, 200, 513, context]
    for begin, end in itertools.pairwise(cuts):
        assert torch.equal(extend(begin, end), whole[begin:end])


def test_attention_refuses_what_does_not_fit():
    pages = Pages.of([4], 16)
    k = pages.arena(2, 32, dtype=BF16)
    q = torch.randn(1, 4, 32).to(BF16)
    with pytest.raises(ValueError, match="K dividing H"):
        attention.gqa_decode(torch.randn(1, 3, 32).to(BF16), k, k, pages.table, pages.contexts, 1.0)
    with pytest.raises(ValueError, match="int32"):
        attention.gqa_decode(q, k, k, pages.table.long(), pages.contexts, 1.0)
    with pytest.raises(ValueError, match="row_starts"):
        attention.gqa_extend(q, k, k, pages.table, torch.tensor([0, 1]), pages.contexts, 1.0)


@DTYPES
def test_mla_decode_token_of_several_is_bitwise_a_row_of_its_own(isa, dtype):
    pages = Pages.of([130, 700], 64)
    arena = pages.arena(80, dtype=dtype)
    q_latent, q_rope = (torch.randn(6, 4, n).to(dtype) for n in (64, 16))
    rest = (q_latent, q_rope, arena)
    together = attention.mla_decode(*rest, pages.table, pages.contexts, 0.1)
    ragged = attention.mla_decode(*rest, pages.table, pages.contexts, 0.1, row_starts=starts_of([1, 5]))
    lens = torch.tensor([128, 129, 130, 698, 699, 700], dtype=torch.int32)
    alone = attention.mla_decode(*rest, pages.table.repeat_interleave(3, 0), lens, 0.1)
    assert torch.equal(together, alone)
    assert torch.equal(ragged[3:], alone[3:])
