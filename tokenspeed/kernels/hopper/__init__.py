# SPDX-License-Identifier: MIT
"""The Hopper backend: kernels written in Gluon for compute capability 9.0 (H100, H200).

Out: `KERNELS`, gathered from the modules beside this one. They use what only this chip has (warpgroup matrix
products, the bulk tensor copy engine, warp specialisation), so the interpreter cannot run them: tests compile
them for the chip without one and assert registers, spills and instructions; on the chip they are crossed with
their references.
"""

from __future__ import annotations

from tokenspeed.kernels.hopper import gqa_decode, mla_decode, mla_decode_fp8, prefill
from tokenspeed.kernels.spec import Kernel

KERNELS: tuple[Kernel, ...] = (
    *gqa_decode.KERNELS,
    *mla_decode.KERNELS,
    *mla_decode_fp8.KERNELS,
    *prefill.KERNELS,
)
"""What `kernels.load` collects."""
