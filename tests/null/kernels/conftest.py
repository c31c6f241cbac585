# SPDX-License-Identifier: MIT
"""A device, an op's traits and a registry of references only, for tests that judge declarations."""

from __future__ import annotations

import pytest
import torch

from tokenspeed.kernels import Device, Traits
from tokenspeed.kernels.load import load
from tokenspeed.kernels.registry import Registry


@pytest.fixture
def cpu() -> Device:
    return Device(type="cpu", name="a laptop", isa=frozenset({"avx2", "fma"}), cores=8, memory_bytes=16 << 30)


@pytest.fixture
def hopper() -> Device:
    return Device(type="cuda", name="a GPU", sm=(9, 0), cores=132, memory_bytes=141 << 30)


@pytest.fixture
def mla() -> Traits:
    return {"dtype": torch.bfloat16, "heads": 16, "latent": 512, "rope": 64, "block_tokens": 64}


@pytest.fixture
def references() -> Registry:
    return load((), ())
