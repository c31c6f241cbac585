# SPDX-License-Identifier: MIT
"""What this process may use of the machine: the facts `resolve` chooses by.

In: a device. Out: `DeviceFacts`. On Linux a container's limits count (cgroup v2 and v1), not only the
machine's size. Measures when called; chooses nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

from tokenspeed import kernels
from tokenspeed.base.errors import SetupError
from tokenspeed.base.resolve import DeviceFacts

_CGROUP: Final = Path("/sys/fs/cgroup")


def choose_device(wanted: str) -> torch.device:
    """`auto` takes a GPU when there is one; `SetupError` for a device that is not there."""
    if wanted == "null":
        raise SetupError("--device null computes nothing, so there is nothing to ask of it; use cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SetupError("--device cuda: torch sees no GPU here; use --device cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted, 0) if wanted == "cuda" else torch.device(wanted)


def measure(device: torch.device) -> DeviceFacts:
    """Look at the device as it is now."""
    facts = kernels.describe(device)
    if device.type == "cuda":
        available, total = torch.cuda.mem_get_info(device)
    else:
        available, total = _host_memory(facts.memory_bytes)
    return DeviceFacts(device.type, facts.name, cores(), total, available)


def cores() -> int:
    """CPU cores this process may keep busy: its affinity, within its container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        return max(1, min(affinity, -(-int(quota[0]) // int(quota[1]))))
    return affinity


def _host_memory(total: int) -> tuple[int, int]:
    """(available, total) bytes."""
    available = total // 2  # where the system does not say
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for limit_file, usage_file in (
        (_CGROUP / "memory.max", _CGROUP / "memory.current"),
        (_CGROUP / "memory/memory.limit_in_bytes", _CGROUP / "memory/memory.usage_in_bytes"),
    ):
        limit, usage = _read(limit_file).strip(), _read(usage_file).strip()
        if limit.isdigit() and usage.isdigit() and int(limit) < total:
            total = int(limit)
            available = min(available, total - int(usage))
    return max(0, available), total


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
