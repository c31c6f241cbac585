# SPDX-License-Identifier: MIT
"""Every kernel of the Triton backend agrees with its reference, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from tokenspeed.kernels.triton import KERNELS

PROGRAM = Path(__file__).with_name("interpreted.py")


@pytest.mark.parametrize(("op", "kernel"), [(kernel.op, kernel.name) for kernel in KERNELS])
def test_kernel_agrees_with_reference_under_the_interpreter(op: str, kernel: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), op, kernel], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
