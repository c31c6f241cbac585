# SPDX-License-Identifier: MIT
"""`moe.*` for NVIDIA GPUs: which kernel, cut how, for how many tokens.

In: experts once, as the checkpoint has them; activations and choices every step. Out: new tensors, or `out`.
Few tokens run as `moe_few` has it, many as `moe_many`; the tiles are those measured for this device and shape
(`tuned`), else `plan_of`'s: fit for any device, best for none.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import AtLeast, AtMost, MultipleOf, Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel, Plain
from tokenspeed.kernels.triton import moe_few, moe_few_fp8, moe_gate, moe_many, moe_weights, tuned

OP = "moe.experts"
VERSION = 2
"""Of the plans: a change of a kernel's meaning or speed makes measured ones void."""
EXPERTS_MAX = 512
SHAPE = ("dtype", "format", "experts", "shared", "top_k", "width", "ffn")
"""Traits a plan was measured for."""

Plan = moe_few.Plan | moe_many.Plan


def build(traits: Traits, device: Device) -> Implementation:
    """Bind the experts of one layer to the plans of its shape."""
    shape = {name: _plain(traits[name]) for name in SHAPE}
    planned = functools.cache(functools.partial(plan_of, shape, device))

    def experts(
        x: Tensor, ids: Tensor, weights: Tensor, w: moe_weights.Stacked, *, out: Tensor | None = None
    ) -> Tensor:
        """Sum over each token's experts, weighted, and over the shared ones."""
        y = torch.empty_like(x) if out is None else out
        return run(x, ids, weights, w, planned(x.shape[0]), y)

    prepare = functools.partial(moe_weights.prepare, format=str(shape["format"]))
    return Implementation(experts, prepare)


def run(x: Tensor, ids: Tensor, weights: Tensor, w: moe_weights.Stacked, plan: Plan, y: Tensor) -> Tensor:
    """Run tokens as `plan` has it; write and return y."""
    if isinstance(plan, moe_few.Plan):
        if w.format == "fp8_block" and x.element_size() == 2:
            return moe_few_fp8.run(x, ids, weights, w, plan, y)
        return moe_few.run(x, ids, weights, w, plan, y)
    return moe_many.run(x, ids, weights, w, plan, y)


def plan_of(shape: tuned.Shape, device: Device, tokens: int) -> Plan:
    """The plan measured for this device, shape and about so many tokens; without one, a heuristic.

    The heuristic fills shared memory with stages as far as two programs fit beside each other. Few tokens:
    weight tiles of 64 rows. Many: tiles of 128 pairs where an expert has that many, else 64.
    """
    held = tuned.plan_for(OP, device.name, VERSION, shape, tokens)
    if held is not None:
        return plan_from(held)
    if shape["format"] == "fp8_block" and shape["dtype"] != "float32" and tokens <= moe_few.TOKENS_MAX:
        return moe_few_fp8.plan_of(tokens)
    item = 4 if shape["dtype"] == "float32" else 2
    memory = shared_memory_bytes(device)
    if tokens <= moe_few.TOKENS_MAX:
        columns = max(16, 1 << (tokens - 1).bit_length())
        up = moe_few.Tile(64, *_stages(128 + columns, item, memory), 4)
        down = moe_few.Tile(64, *_stages(64 + columns, item, memory), 4)
        return moe_few.Plan(up, down)
    pairs = tokens * int(shape["top_k"]) / int(shape["experts"])
    rows = 128 if pairs > 64 and item == 2 else 64
    up, down = (
        moe_many.Tile(rows, columns, *_stages(rows + 128, item, memory), rows // 16) for columns in (64, 128)
    )
    return moe_many.Plan(up, down)


def plan_from(held: Any) -> Plan:
    """Read a plan as `tuned` holds it: {"few" or "many": {"up": [...], "down": [...]}}, the fields of tiles."""
    if "few" in held:
        return moe_few.Plan(*(moe_few.Tile(*held["few"][name]) for name in ("up", "down")))
    return moe_many.Plan(*(moe_many.Tile(*held["many"][name]) for name in ("up", "down")))


def _stages(rows: int, item: int, memory: int) -> tuple[int, int]:
    """Depth and number of stages of `rows` rows: 256 bytes deep, 2 to 4 of them in half the memory."""
    depth = 256 // item
    while depth > 32 and 2 * rows * depth * item > memory:
        depth //= 2
    return depth, max(2, min(4, memory // 2 // (rows * depth * item)))


@functools.cache
def shared_memory_bytes(device: Device) -> int:
    """What one program may use."""
    if device.type != "cuda":
        return 1 << 17
    return torch.cuda.get_device_properties(device.torch).shared_memory_per_block_optin


def _plain(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value).removeprefix("torch.")


_FLOATS = {torch.bfloat16, torch.float16, torch.float32}
_SM = AtLeast((8, 0))


def _experts(name: str, sm: AtLeast, format: str, unit: int) -> Kernel:
    """Rows of weights begin at multiples of 16 bytes, as the copy engine wants: `unit` of their numbers."""
    return Kernel(
        OP,
        name,
        Needs(
            sm=sm,
            dtype=_FLOATS,
            format=format,
            experts=AtMost(EXPERTS_MAX),
            width=MultipleOf(unit),
            ffn=MultipleOf(unit),
        ),
        Band.FAST,
        build,
    )


INT8 = _experts("triton_int8", _SM, "int8", 16)
"""Held back: the chip has checked it for few tokens alone (docs/log/0004)."""

KERNELS = (
    Kernel(
        "moe.gate",
        "triton",
        Needs(sm=_SM, x_dtype=_FLOATS, experts=AtMost(EXPERTS_MAX)),
        Band.FAST,
        Plain(moe_gate.gate, moe_gate.gate_prepare, prepare_traits=("x_dtype",)),
    ),
    Kernel(
        "moe.norm_gate",
        "triton",
        Needs(sm=_SM, x_dtype=_FLOATS, experts=AtMost(EXPERTS_MAX)),
        Band.FAST,
        Plain(moe_gate.norm_gate, moe_gate.gate_prepare, prepare_traits=("x_dtype",)),
    ),
    Kernel(
        "moe.route", "triton", Needs(sm=_SM, experts=AtMost(EXPERTS_MAX)), Band.FAST, Plain(moe_gate.route)
    ),
    _experts("triton", _SM, "native", 8),
    _experts("triton_fp8", AtLeast((8, 9)), "fp8_block", 16),
)
