# SPDX-License-Identifier: MIT
"""The public ops: what layers may ask of a device. One module per family; `OPS` is all of them.

Each op states its signature (that of its reference), shapes, source, traits, test sizes, tolerance and cost.
Nothing here runs: `kernels.bind` turns an op into a callable. Layers name ops by string and never import from
here.
"""

from __future__ import annotations

from tokenspeed.kernels.api import attention, dense, linear, moe, rope, sampling, step

OPS = (*linear.OPS, *dense.OPS, *rope.OPS, *attention.OPS, *moe.OPS, *step.OPS, *sampling.OPS)
