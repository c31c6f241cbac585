# SPDX-License-Identifier: MIT
"""Selection: pure, best band first, every refusal told, overrides subject to needs."""

from __future__ import annotations

import copy

import pytest
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels import Band, Device, Kernel, Needs, Overrides, Plain, Traits, select
from tokenspeed.kernels.load import build
from tokenspeed.kernels.registry import Registry

OP = "attention.mla_decode"


@pytest.fixture
def registry(references: Registry) -> Registry:
    gluon = Needs(sm=(9, 0), dtype={torch.bfloat16}, latent={512}, rope={64}, block_tokens={64, 128})
    for name, needs, band in (
        ("gluon", gluon, Band.FAST),
        ("vector", Needs(device="cpu", isa={"avx512f", "avx512_bf16"}, latent={512}), Band.FAST),
        ("portable", Needs(device="cpu"), Band.GENERIC),
    ):
        references.add(Kernel(OP, name, needs, band, Plain(references.op(OP).reference.call)))
    return references


def test_best_band_that_holds_is_chosen(registry: Registry, cpu: Device, hopper: Device, mla: Traits) -> None:
    assert select(registry, OP, mla, hopper).kernel.name == "gluon"
    assert select(registry, OP, mla, cpu).kernel.name == "portable"
    assert select(registry, OP, {**mla, "latent": 256}, hopper).kernel.name == "ref"


def test_every_other_kernel_is_refused_with_every_reason(
    registry: Registry, cpu: Device, mla: Traits
) -> None:
    choice = select(registry, OP, {**mla, "latent": 256, "block_tokens": 16}, cpu)
    told = {refusal.kernel.name: refusal.reasons for refusal in choice.refusals}
    assert told == {
        "gluon": (
            "needs device cuda, got cpu",
            "needs sm 9.0, got none",
            "needs latent 512, got 256",
            "needs block_tokens 64 or 128, got 16",
        ),
        "vector": ("needs isa avx512_bf16 and avx512f, got avx2 fma", "needs latent 512, got 256"),
        "ref": ("could run; portable is better (GENERIC over REF)",),
    }


def test_selection_is_pure(registry: Registry, cpu: Device, mla: Traits) -> None:
    traits = dict(mla)
    before = copy.copy(traits)
    assert select(registry, OP, traits, cpu) == select(registry, OP, traits, cpu)
    assert traits == before


def test_traits_are_checked_against_the_schema(registry: Registry, cpu: Device) -> None:
    wrong = {"dtype": torch.int64, "heads": 0, "latent": True, "block_tokens": 64, "page": 64}
    with pytest.raises(SetupError) as refused:
        select(registry, OP, wrong, cpu)
    assert str(refused.value) == (
        "attention.mla_decode: unknown trait 'page'; "
        "dtype must be one of bfloat16, float32, float16, got int64; "
        "heads must be at least 1, got 0; "
        "latent must be int, got True; "
        "rope is missing (dimensions of the shared rotary key (Dr)). "
        "Its traits are: dtype, heads, latent, rope, block_tokens, kv"
    )


def test_combination_that_makes_no_sense_is_refused(registry: Registry, cpu: Device) -> None:
    traits = {"dtype": torch.float32, "heads": 6, "kv_heads": 4, "head_dim": 64, "block_tokens": 16}
    with pytest.raises(SetupError, match="heads 6 is not a multiple of kv_heads 4"):
        select(registry, "attention.gqa_decode", traits, cpu)


def test_override_is_obeyed(registry: Registry, cpu: Device, mla: Traits) -> None:
    choice = select(registry, OP, mla, cpu, override="ref")
    assert choice.kernel.name == "ref"
    assert choice.reason == "named by an override"
    assert {r.kernel.name: r.reasons[0] for r in choice.refusals}["portable"] == (
        "could run; an override names ref"
    )


def test_override_whose_needs_fail_is_refused(registry: Registry, cpu: Device, mla: Traits) -> None:
    with pytest.raises(SetupError) as refused:
        select(registry, OP, mla, cpu, override="gluon")
    assert str(refused.value) == (
        "override attention.mla_decode=gluon: needs device cuda, got cpu; needs sm 9.0, got none. "
        "Kernels that can run here: portable, ref"
    )


def test_override_of_no_kernel_is_refused(registry: Registry, cpu: Device, mla: Traits) -> None:
    with pytest.raises(
        SetupError, match=r"no such kernel; attention\.mla_decode has gluon, vector, portable, ref"
    ):
        select(registry, OP, mla, cpu, override="flash")


def test_override_texts_match_patterns_and_the_last_wins(registry: Registry) -> None:
    overrides = Overrides.parse(["*=ref", "attention.mla_decode=portable"], registry)
    assert overrides.of(OP) == "portable"
    assert overrides.of("norm.rms") == "ref"
    assert Overrides().of(OP) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attention.mla_decode", "reads op=kernel"),
        ("=ref", "reads op=kernel"),
        ("attention.mla=ref", "no op named 'attention.mla'"),
        ("norm.*=portable", "no such kernel; norm.add_rms has ref"),
    ],
)
def test_override_text_naming_nothing_is_refused(registry: Registry, text: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        Overrides.parse([text], registry)


def test_built_kernel_is_the_chosen_function(registry: Registry, cpu: Device) -> None:
    traits = {"dtype": torch.float32, "in_dim": 4, "out_dim": 2, "format": "int8"}
    bound = build(select(registry, "linear.dense", traits, cpu))
    assert bound.func is registry.op("linear.dense").reference.call
    weight = bound.prepare(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
    assert weight.weight.dtype == torch.int8
    assert weight.weight.tolist() == [[32, 64, 95, 127], [0, 0, 0, 0]]
    assert weight.scale.flatten().tolist() == pytest.approx([4 / 127, 1.0])
    assert bound.choice.kernel.name == "ref"


def test_op_without_weights_has_nothing_to_prepare(registry: Registry, cpu: Device, mla: Traits) -> None:
    with pytest.raises(TypeError, match="no weights to prepare"):
        build(select(registry, OP, mla, cpu)).prepare(torch.zeros(1))
