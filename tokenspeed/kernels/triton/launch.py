# SPDX-License-Identifier: MIT
"""How the small kernels of a decode step are launched: with sizes that fit, and ahead of time where they can.

`early` says whether a device can start a kernel while the one before it still runs (programmatic dependent
launch). A kernel launched so must call `gdc_wait` before it touches anything but weights: whatever earlier
kernels write, read or have freed; and it calls `gdc_launch_dependents` as soon as it may.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def early(device: torch.device) -> bool:
    """Say whether kernels on `device` may be launched before their predecessor has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
