# SPDX-License-Identifier: MIT
"""Compile kernels for compute capability 9.0 without such a GPU, and read what came out."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_BYTES_MAX = 227 << 10
"""Shared memory of one program on Hopper."""


def boxes(*shape: int) -> str:
    """The type of a descriptor of bfloat16 boxes."""
    return f"tensordesc<bf16{list(shape)},{gl.NVMMASharedLayout(128, 16, len(shape))!r}>"


@dataclass(frozen=True, slots=True)
class Machine:
    """Machine code of a kernel: its instructions by name, and what it takes of the chip."""

    assembly: str
    stack_bytes: int
    shared_bytes: int

    def count(self, instruction: str) -> int:
        """How often an instruction is written; `HGMMA` counts every `HGMMA.64x128x16..`."""
        return len(re.findall(rf"\b{re.escape(instruction)}\b", self.assembly))

    @property
    def spills(self) -> int:
        return self.stack_bytes + self.count("STL") + self.count("LDL")


def machine_code(
    kernel: Any, arguments: Mapping[str, str], constants: Mapping[str, Any], directory: Path, warps: int = 4
) -> Machine:
    """Compile `kernel`; pointers and whole numbers that are strides (`*_token` and the like) are aligned."""
    names: list[str] = kernel.arg_names
    aligned = [
        (at,)
        for at, name in enumerate(names)
        if arguments.get(name, "").startswith("*")
        or re.fullmatch(r"(q|out|k|latent|rope)_(token|head|row)|x_stride", name)
    ]
    source = (GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource)(
        kernel,
        {name: "constexpr" if name in constants else arguments[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {at: [["tt.divisibility", 16]] for at in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    file = directory / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    used = _tool("cuobjdump", "-res-usage", file)
    stack = re.search(r"STACK:(\d+)", used)
    assert stack is not None, used
    return Machine(_tool("nvdisasm", "-c", file), int(stack[1]), compiled.metadata.shared)


def _tool(name: str, *arguments: object) -> str:
    ran = subprocess.run([TOOLS / name, *map(str, arguments)], capture_output=True, text=True, check=True)
    return ran.stdout + ran.stderr
