# SPDX-License-Identifier: MIT
"""The kernel layer: public ops, kernels with declared needs, one selector that explains itself.

A layer does three things: `bound = bind("linear.dense", device, dtype=..., ...)` when it is built, `w =
bound.prepare(weight, bias)` when weights are loaded, `bound(x, w)` every step. Which kernel that is was
decided once, from data (`bound.choice`). The ops and their shapes are in `api/`, listed in
docs/reference/kernels.md. Plugins declare `Kernel`s with `Needs`, `Band`, `Plain` or their own build function
(docs/guides/kernel-plugins.md).
"""

from __future__ import annotations

from tokenspeed.kernels.device import Device, describe
from tokenspeed.kernels.load import Bound, bind, overriding, registry
from tokenspeed.kernels.needs import AtLeast, AtMost, MultipleOf, Needs, OneOf, Traits
from tokenspeed.kernels.select import Choice, Overrides, select
from tokenspeed.kernels.spec import Band, Implementation, Kernel, Plain

__all__ = [
    "AtLeast",
    "AtMost",
    "Band",
    "Bound",
    "Choice",
    "Device",
    "Implementation",
    "Kernel",
    "MultipleOf",
    "Needs",
    "OneOf",
    "Overrides",
    "Plain",
    "Traits",
    "bind",
    "describe",
    "overriding",
    "registry",
    "select",
]
