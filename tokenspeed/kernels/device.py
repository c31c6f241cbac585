# SPDX-License-Identifier: MIT
"""What a device is, as facts that kernels may need.

In: a torch device. Out: a frozen `Device`: type, name, compute capability or instruction sets, cores, memory.
It measures nothing and chooses nothing. `describe` looks at the machine once; everything downstream takes the
value, so that selection for a device one does not have can be asked for and tested.
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

ISA_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "neon",
    "asimd",
    "bf16",
    "sve",
)
"""Instruction sets that a kernel may name, spelled as the kernel of the operating system spells them."""


@dataclass(frozen=True, slots=True)
class Device:
    """Facts of one device. `sm` is None off NVIDIA, `isa` is empty off the CPU."""

    type: str
    name: str = ""
    index: int = 0
    sm: tuple[int, int] | None = None
    isa: frozenset[str] = frozenset()
    cores: int = 1
    memory_bytes: int = 0

    @property
    def torch(self) -> torch.device:
        """The device as torch addresses it."""
        return torch.device("cpu") if self.type == "cpu" else torch.device(self.type, self.index)

    def __str__(self) -> str:
        facts = [self.name or self.type, f"{self.cores} cores", f"{self.memory_bytes / 2**30:.0f} GiB"]
        if self.sm is not None:
            facts.append(f"sm {self.sm[0]}.{self.sm[1]}")
        if self.isa:
            facts.append(" ".join(sorted(self.isa)))
        return ", ".join(facts)


@functools.cache
def describe(device: str | torch.device = "cpu") -> Device:
    """Look at a device of this machine and return its facts."""
    where = torch.device(device)
    if where.type == "cuda":
        return _describe_cuda(where.index or 0)
    if where.type != "cpu":
        return Device(type=where.type, name=where.type, index=where.index or 0)
    flags = _cpu_flags()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        type="cpu",
        name=_cpu_name() or platform.machine(),
        isa=frozenset(flag for flag in ISA_FLAGS if flag in flags),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory,
    )


def _describe_cuda(index: int) -> Device:
    facts = torch.cuda.get_device_properties(index)
    return Device(
        type="cuda",
        name=facts.name,
        index=index,
        sm=(facts.major, facts.minor),
        cores=facts.multi_processor_count,
        memory_bytes=facts.total_memory,
    )


def _cpuinfo(*keys: str) -> str:
    source = Path("/proc/cpuinfo")
    if not source.exists():
        return ""
    for line in source.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _cpu_flags() -> frozenset[str]:
    listed = frozenset(_cpuinfo("flags", "Features").split())
    return listed | ({"neon"} if platform.machine() in {"arm64", "aarch64"} else set())


def _cpu_name() -> str:
    return _cpuinfo("model name")
