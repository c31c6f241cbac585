# SPDX-License-Identifier: MIT
"""The Triton backend: portable kernels for NVIDIA GPUs of compute capability 8.0 and above.

Out: `KERNELS`, gathered from the modules beside this one. Plain Triton only, so that every kernel also runs
under the interpreter on CPU tensors, where tests cross it with its reference. What is faster on one chip
alone lives in a backend of its own (`kernels.hopper`) and goes first there by its band.

Two promises every kernel of this backend keeps, because steps are replayed as CUDA graphs padded to a bucket:
a row whose `context_lens` is 0 reads and costs nothing, and a negative `write_index` or expert id is skipped.
"""

from __future__ import annotations

from tokenspeed.kernels.spec import Kernel
from tokenspeed.kernels.triton import (
    absorb,
    gqa,
    linear,
    linear_fp8,
    mla,
    moe,
    pointwise,
    prefill,
    rope,
    rope_fp8,
    sampling,
    step,
)

KERNELS: tuple[Kernel, ...] = (
    *absorb.KERNELS,
    *gqa.KERNELS,
    *linear.KERNELS,
    *linear_fp8.KERNELS,
    *mla.KERNELS,
    *moe.KERNELS,
    *pointwise.KERNELS,
    *prefill.KERNELS,
    *rope.KERNELS,
    *rope_fp8.KERNELS,
    *sampling.KERNELS,
    *step.KERNELS,
)
"""What `kernels.load` collects."""
