# SPDX-License-Identifier: MIT
"""What an operator reads: the account of a choice, and the generated reference page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels import AtLeast, Band, Device, Kernel, MultipleOf, Needs, Overrides, Plain
from tokenspeed.kernels.explain import explain, parse_traits, reference_page
from tokenspeed.kernels.load import BACKENDS, load
from tokenspeed.kernels.registry import Registry

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "kernels.md"

ACCOUNT = """\
attention.mla_decode(q_latent, q_rope, arena, block_table, context_lens, scale, *, row_starts=None, row_tokens_max=None, lse=None, schedule=None, out=None)
  Attend causally in the latent space with the few new tokens of each row (absorbed MLA): the cached latent
    is key and value.
  call: q_latent [T, H, L] dense, q_rope [T, H, Dr] (last dimension dense, the others at any stride), arena
    [N, P, L + Dr], block_table [R, B] int32, context_lens [R] int32 (the new tokens included; a row of
    context 0 is padding, its output is 0), scale (of the un-absorbed head: 1 / sqrt(Dn + Dr), YaRN factor
    included) -> [T, H, L], still latent. row_starts [R + 1] int32 says which tokens are whose (default: T /
    R each), row_tokens_max how many the longest row may have (default: T); lse [T, H] float32 is filled
    with the log of the sum of exp(score) (-inf in padding); schedule is what `Bound.schedule(context_lens,
    row_tokens_max=1, row_starts=None)` returned for this step (default: made at the call). A kernel that
    `shares` also takes the blocks that rows begin with together, as `shared`, a `SharedBlocks`, in both: it
    reads them once, and the result is the same.
  source: DeepSeek-V2, arXiv 2405.04434, section 2.1.

device  a laptop, 8 cores, 16 GiB, avx2 fma
traits  dtype=bfloat16 (assumed), heads=128, latent=512 (assumed), rope=64 (assumed), block_tokens=16, kv=native (assumed)

   kernel  band   from        why
*  ref     REF    tokenspeed  chosen: best band that holds (REF)
   cute    TUNED  a-vendor    needs device cuda, got cpu
                              needs sm >= 10.0, got none
                              needs block_tokens 32 or 64, got 16
   vector  FAST   tokenspeed  needs isa avx512_bf16 and avx512f, got avx2 fma
                              needs heads a multiple of 256, got 128
"""  # noqa: E501


@pytest.fixture
def registry(references: Registry) -> Registry:
    name = "attention.mla_decode"
    build = Plain(references.op(name).reference.call)
    cute = Needs(sm=AtLeast((10, 0)), dtype={torch.bfloat16}, block_tokens={32, 64})
    references.add(Kernel(name, "cute", cute, Band.TUNED, build, source="a-vendor"))
    vector = Needs(isa={"avx512f", "avx512_bf16"}, heads=MultipleOf(256))
    references.add(Kernel(name, "vector", vector, Band.FAST, build))
    return references


def test_account_of_a_choice(registry: Registry, cpu: Device) -> None:
    texts = ["heads=128", "block_tokens=16"]
    told = explain(registry, "attention.mla_decode", cpu, Overrides(), texts)
    assert told + "\n" == ACCOUNT


def test_traits_are_read_in_the_types_of_the_schema(registry: Registry) -> None:
    op = registry.op("linear.dense")
    read = parse_traits(op, ["dtype=float32", "in_dim=4096", "bias=yes", "format=int8"])
    assert read == {"dtype": torch.float32, "in_dim": 4096, "bias": True, "format": "int8"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in_dim", "a trait reads name=value"),
        ("width=4", "names are dtype, in_dim, out_dim, bias, format"),
        ("format=int4", "format is one of native, int8, fp8_block; got 'int4'"),
        ("dtype=half", "dtype is one of bfloat16, float32, float16"),
    ],
)
def test_trait_text_that_names_nothing_is_refused(registry: Registry, text: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        parse_traits(registry.op("linear.dense"), [text])


def test_reference_page_is_what_the_declarations_say() -> None:
    loaded = load(BACKENDS, ())
    assert PAGE.read_text() == reference_page(loaded), (
        "run: python -m tokenspeed.kernels > docs/reference/kernels.md"
    )
