# SPDX-License-Identifier: MIT
"""The matrix product of two tiles, as the other kernels of this backend take it.

In: tiles a [M, K], b [K, N] of one dtype, a float32 total [M, N]. Out: total + a b. It is `tl.dot`, save under
the interpreter, whose product takes the bits of a bfloat16 for an integer.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """Return total + a b; PRECISION ("ieee", "tf32") speaks of float32 tiles alone."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    return tl.dot(a, b, total, input_precision=PRECISION)
