# SPDX-License-Identifier: MIT
"""What every launch of a small kernel does first: see that its tensors fit, and whether it may start early.

`early` says whether a device can start a kernel while the one before it still runs (programmatic dependent
launch). A kernel launched so must call `gdc_wait` before it touches anything but weights: whatever earlier
kernels write, read or have freed; and it calls `gdc_launch_dependents` as soon as it may.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def expect(holds: bool, what: str, *tensors: Tensor) -> None:
    """Raise ValueError, naming the tensors' shapes, dtypes and strides, unless `holds`."""
    if not holds:
        seen = ", ".join(f"{tuple(t.shape)} {t.dtype} strides {t.stride()}" for t in tensors)
        raise ValueError(f"want {what}; got {seen}")


@functools.cache
def early(device: torch.device) -> bool:
    """Say whether kernels on `device` may be launched before their predecessor has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def power_of_2(least: int) -> int:
    """The first power of two that is no less."""
    return 1 << (least - 1).bit_length()
