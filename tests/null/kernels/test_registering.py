# SPDX-License-Identifier: MIT
"""What the registry refuses: incomplete ops, kernels that name what is not there, ties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels import AtLeast, AtMost, Band, Kernel, MultipleOf, Needs, Plain
from tokenspeed.kernels.api import OPS
from tokenspeed.kernels.registry import Registry, may_meet

RMS = next(op for op in OPS if op.name == "norm.rms")


def kernel(name: str, band: Band = Band.FAST, **needs: Any) -> Kernel:
    return Kernel("norm.rms", name, Needs(**needs), band, Plain(RMS.reference.call))


@pytest.mark.parametrize(
    ("without", "what"),
    [
        ({"reference": None}, "a reference"),
        ({"sizes": ()}, "a shape generator"),
        ({"inputs": None}, "a shape generator"),
        ({"tolerance": {}}, "a tolerance"),
        ({"cost": None}, "a cost model"),
        ({"shapes": ""}, "documented shapes"),
    ],
)
def test_incomplete_op_is_refused(without: dict[str, Any], what: str) -> None:
    with pytest.raises(SetupError, match=f"op 'norm.rms' has no {what}"):
        Registry([replace(RMS, **without)])


def test_op_registered_twice_is_refused() -> None:
    with pytest.raises(SetupError, match="twice"):
        Registry([RMS, RMS])


def test_every_op_has_its_reference_last() -> None:
    registry = Registry(OPS, [kernel("fast")])
    assert [k.name for k in registry.kernels("norm.rms")] == ["fast", "ref"]
    assert all(registry.kernels(op.name)[-1].name == "ref" for op in registry.ops())


def test_kernel_of_unknown_op_names_the_ops() -> None:
    stray = replace(kernel("fast"), op="norm.layer")
    with pytest.raises(SetupError, match=r"no op named 'norm.layer'; ops are: .*norm\.rms"):
        Registry([RMS], [stray])


def test_kernel_needing_an_unknown_trait_is_refused() -> None:
    with pytest.raises(SetupError, match=r"norm\.rms=fast needs heads, no traits of norm\.rms"):
        Registry([RMS], [kernel("fast", heads=4)])


def test_kernel_registered_twice_is_refused() -> None:
    with pytest.raises(SetupError, match=r"norm\.rms=fast is registered twice"):
        Registry([RMS], [kernel("fast"), kernel("fast", Band.TUNED)])


def test_tie_in_a_band_is_refused_with_both_needs() -> None:
    with pytest.raises(SetupError) as refused:
        Registry([RMS], [kernel("one", device="cpu"), kernel("two", width=MultipleOf(64))])
    assert str(refused.value) == (
        "kernels norm.rms=two and norm.rms=one tie: both are FAST and both may hold at once "
        "(width a multiple of 64 | device cpu). Narrow the needs of one or give it another band"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"device": "cpu"}, {"device": "cuda"}),
        ({"sm": (9, 0)}, {"sm": AtLeast((10, 0))}),
        ({"width": AtMost(64)}, {"width": AtLeast(65)}),
        ({"width": {100, 200}}, {"width": MultipleOf(64)}),
        ({"dtype": {torch.bfloat16}}, {"dtype": {torch.float32, torch.float16}}),
    ],
)
def test_needs_that_exclude_each_other_share_a_band(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert not may_meet(Needs(**one), Needs(**other))
    assert not may_meet(Needs(**other), Needs(**one))
    Registry([RMS], [kernel("one", **one), kernel("two", **other)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"device": "cpu"}),
        ({"isa": {"avx2"}}, {"isa": {"avx512f"}}),
        ({"width": AtLeast(64)}, {"width": AtMost(64)}),
        ({"width": MultipleOf(3)}, {"width": MultipleOf(5)}),
    ],
)
def test_needs_that_may_meet_do_not_share_a_band(one: dict[str, Any], other: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="tie"):
        Registry([RMS], [kernel("one", **one), kernel("two", **other)])
