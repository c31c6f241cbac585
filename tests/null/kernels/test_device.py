# SPDX-License-Identifier: MIT
"""Facts of the machine the tests run on, and how they read."""

from __future__ import annotations

import os

import torch

from tokenspeed.kernels import Device, describe
from tokenspeed.kernels.device import ISA_FLAGS


def test_cpu_is_described_by_facts_of_this_machine() -> None:
    device = describe("cpu")
    assert (device.type, device.sm, device.torch) == ("cpu", None, torch.device("cpu"))
    assert device.isa <= set(ISA_FLAGS)
    assert 1 <= device.cores <= (os.cpu_count() or 1)
    assert device.memory_bytes > 1 << 30
    assert describe("cpu") is device


def test_device_reads_as_one_line(cpu: Device, hopper: Device) -> None:
    assert str(cpu) == "a laptop, 8 cores, 16 GiB, avx2 fma"
    assert str(hopper) == "a GPU, 132 cores, 141 GiB, sm 9.0"
    assert hopper.torch == torch.device("cuda", 0)
