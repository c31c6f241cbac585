# SPDX-License-Identifier: MIT
"""Cross the kernels of the Triton backend with their references on the CPU, under Triton's interpreter.

A program of its own, because the interpreter is chosen when triton is first imported: `TRITON_INTERPRET=1
python interpreted.py linear.heads triton`. Kernels are built for the CPU with the facts of a small GPU where
they ask for them; `linear.*` and the like, which hand large products to the vendor's library, hand them to
torch. Prints what is wrong, one line each, and exits 1; prints nothing else.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tokenspeed.kernels import Device, registry
from tokenspeed.kernels.check import faults, grid
from tokenspeed.kernels.needs import show

CASES = 6
"""Combinations of traits per kernel: the interpreter takes about a millisecond for each program."""
TOKENS = 8
"""Calls of more tokens than this run for the first combination alone."""

DEVICE = Device(type="cpu", name="interpreted", cores=4)


def dot(_: InterpreterBuilder, a: Any, b: Any, d: Any, *__: object) -> TensorHandle:
    """Multiply as the interpreter does, but take 16-bit patterns of bfloat16 for the numbers they are."""
    return TensorHandle(np.matmul(widened(a), widened(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)


def widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def patch_tensor(tensor: Any, scope: Any) -> None:
    """Patch as the interpreter does, but let loop bounds be arrays of one number, which numpy 2.4 minds."""
    PATCH_TENSOR(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def convert_float(values: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Convert as the interpreter does, but round to e4m3 as torch does: the interpreter loses the carry."""
    if target == tl.float8e4nv and source == tl.float32:
        rounded = torch.from_numpy(values).to(torch.float8_e4m3fn)
        return rounded.view(torch.uint8).numpy()
    return CONVERT_FLOAT(values, source, target, rounding)


CONVERT_FLOAT = interpreter._convert_float
interpreter._convert_float = convert_float
PATCH_TENSOR = interpreter._patch_lang_tensor
interpreter._patch_lang_tensor = patch_tensor
InterpreterBuilder.create_dot = dot


def run(op_name: str, kernel_name: str) -> int:
    op = registry().op(op_name)
    kernel = next(kernel for kernel in registry().kernels(op_name) if kernel.name == kernel_name)
    wrong = 0
    for case, traits in enumerate(itertools.islice(grid(op, kernel.needs), CASES)):
        for seed, sizes in enumerate(op.sizes):
            if case and max(sizes.tokens, sum(sizes.lengths)) > TOKENS:
                continue
            for fault in faults(op, kernel, traits, sizes, DEVICE, seed):
                wrong += 1
                named = ", ".join(f"{name}={show(value)}" for name, value in traits.items())
                print(f"{op_name}={kernel_name} at {sizes} with {named}: {fault}")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(run(*sys.argv[1:])))
