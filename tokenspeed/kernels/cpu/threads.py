# SPDX-License-Identifier: MIT
"""The threads that kernels of this backend share, and the instruction set they use.

In: counts and names. Out: nothing but the setting. The pool belongs to the process; it starts with the first
kernel that is built, with one thread for each core of the device. Workers spin for a while after a kernel, so
that the next one of a step finds them awake, then park. While kernels of this backend carry a step, torch
should keep to one thread (`torch.set_num_threads(1)`): its idle OpenMP workers spin too, on the cores that
ours need.
"""

from __future__ import annotations

from tokenspeed.kernels.cpu import _cpu

SPIN_US = 200


def set_threads(threads: int, spin_us: int = SPIN_US) -> None:
    """Use `threads` threads, the caller included; workers spin `spin_us` microseconds after a kernel."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _cpu.set_threads(threads, spin_us)


def threads() -> int:
    """Return how many threads run a kernel, the caller included; 1 before anything was built."""
    return _cpu.threads()


def set_isa(name: str) -> None:
    """Use the kernels of one instruction set, for tests. Raises ValueError for one that this machine
    lacks."""
    if not _cpu.set_isa(name):
        raise ValueError(f"no instruction set {name!r} here; there are: {', '.join(_cpu.available_isas())}")


def isa() -> str:
    """Return the instruction set in use; the best one unless `set_isa` was called."""
    return _cpu.isa()


def available_isas() -> list[str]:
    """Return the instruction sets of this machine that kernels exist for, best first."""
    return _cpu.available_isas()
