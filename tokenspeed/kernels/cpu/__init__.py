# SPDX-License-Identifier: MIT
"""The CPU backend: vectorised C++ kernels (csrc/cpu) for AVX-512 bf16, AVX2 and anything else, picked at run
time.

Out: `KERNELS`, one for every op but nothing that torch does well anyway. Weights are packed once, at load.
Kernels run on the backend's own threads (`threads.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tokenspeed.kernels.cpu import attention, linear, moe, pointwise, rope, threads
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel, Plain


@dataclass(frozen=True, slots=True)
class Threaded:
    """Builds as `plain` does, after seeing to it that the pool runs on all cores of the device."""

    plain: Plain

    def __call__(self, traits: Traits, device: Device) -> Implementation:
        if threads.threads() < device.cores:
            threads.set_threads(device.cores)
        return self.plain(traits, device)


def _kernel(
    op: str,
    call: Callable[..., Any],
    prepare: Callable[..., Any] | None = None,
    call_traits: tuple[str, ...] = (),
    prepare_traits: tuple[str, ...] = (),
    dtyped: bool = True,
) -> Kernel:
    needs: dict[str, Any] = {"device": "cpu"}
    if dtyped:
        needs["dtype"] = {torch.bfloat16, torch.float32}
    if op.startswith(("attention.", "rope.")):
        needs["kv"] = "native"
    if "format" in prepare_traits:
        needs["format"] = {"native", "int8"}
    return Kernel(
        op, "cpu", Needs(**needs), Band.FAST, Threaded(Plain(call, prepare, call_traits, prepare_traits))
    )


KERNELS = (
    _kernel(
        "linear.dense",
        linear.dense,
        linear.dense_prepare,
        call_traits=("float32_out",),
        prepare_traits=("format",),
    ),
    _kernel("linear.heads", linear.heads, linear.heads_prepare),
    _kernel("embedding.lookup", pointwise.lookup),
    _kernel("norm.rms", pointwise.rms),
    _kernel("norm.add_rms", pointwise.add_rms),
    _kernel("activation.silu_mul", pointwise.silu_mul),
    _kernel("rope.gqa_write", rope.gqa_write, call_traits=("interleaved",)),
    _kernel("rope.mla_write", rope.mla_write, call_traits=("interleaved",)),
    _kernel(
        "rope.mla_absorb_write", rope.mla_absorb_write, linear.heads_prepare, call_traits=("interleaved",)
    ),
    _kernel("attention.gqa_decode", attention.gqa_decode),
    _kernel("attention.gqa_extend", attention.gqa_extend),
    _kernel("attention.mla_decode", attention.mla_decode),
    _kernel("attention.mla_extend", attention.mla_extend, attention.mla_pack),
    _kernel("moe.gate", moe.gate, moe.gate_prepare, dtyped=False),
    _kernel("moe.norm_gate", moe.norm_gate, moe.gate_prepare, dtyped=False),
    _kernel("moe.route", moe.route, dtyped=False),
    _kernel("moe.experts", moe.experts, moe.experts_prepare, prepare_traits=("format",)),
)
"""What `kernels.load` collects."""
