# SPDX-License-Identifier: MIT
"""Every registered kernel, plugins included, agrees with its reference over the grid that its needs span."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest
import torch

from tokenspeed.kernels import Kernel, describe, registry
from tokenspeed.kernels.check import faults, grid
from tokenspeed.kernels.load import BACKENDS
from tokenspeed.kernels.needs import FACTS, show
from tokenspeed.kernels.spec import Op, Traits


@pytest.mark.skipif(sys.platform != "linux", reason="triton is made for Linux alone")
@pytest.mark.parametrize("name", BACKENDS)
def test_backend_is_here_with_what_it_needs(name: str) -> None:
    """Tests of a backend skip where its compiler is missing; the test extra brings it, so here that is a fault."""
    assert importlib.import_module(name).KERNELS


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def cases() -> Iterator[object]:
    for op in registry().ops():
        for kernel in registry().kernels(op.name):
            for where in devices():
                yield pytest.param(op, kernel, where, id=f"{op.name}={kernel.name}@{where}")


@pytest.mark.parametrize(("op", "kernel", "where"), list(cases()))
def test_kernel_agrees_with_reference(op: Op, kernel: Kernel, where: str) -> None:
    device = describe(where)
    facts = {"device": device.type, "sm": device.sm, "isa": device.isa}
    for name in FACTS:
        condition = kernel.needs.get(name)
        if condition is not None and not condition.holds(facts[name]):
            pytest.skip(f"needs {name} {condition}, got {show(facts[name])}")
    for traits in grid(op, kernel.needs):
        for seed, sizes in enumerate(op.sizes):
            assert not (found := faults(op, kernel, traits, sizes, device, seed)), told(found, traits, sizes)


def told(found: list[str], traits: Traits, sizes: object) -> str:
    named = ", ".join(f"{name}={show(value)}" for name, value in traits.items())
    return "\n  ".join([f"at {sizes} with {named}:", *found])
