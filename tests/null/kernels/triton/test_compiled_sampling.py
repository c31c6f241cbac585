# SPDX-License-Identifier: MIT
"""The kernels of both ends of a step compile for compute capability 9.0 without spills, sums as atomics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from tests.null.kernels.hopper.sm90 import machine_code
from tokenspeed.kernels.triton import sampling, step

TYPES = {
    "scores": "*fp32", "logits": "*fp32", "vocab": "i32", "slots": "*i64", "positions": "*i64", "settings": "*fp64",
    "seeds": "*i64", "counts": "*i32", "in_prompt": "*i8", "edit_ids": "*i32", "edit_values": "*fp32",
    "chosen": "*i32", "state": "*i64", "histogram": "*i64", "sums": "*i64", "arrived": "*i32", "forced": "*i32",
    "forced_width": "i32", "last_tokens": "*i64", "partials": "*i64", "ids": "*i64", "ids_count": "i32",
    "table": "*i32", "lines": "*i32", "bits": "*i32", "words": "i32", "out": "*fp32",
    "table_stride": "i32", "block_table": "*i32", "width": "i32",
}  # fmt: skip
CUT = {"PART": 2048, "SIZE": sampling.BLOCK, "FIELDS": sampling.STATE}
SEARCH = {**CUT, "PARTS": 80, "SHIFT": 21, "BITS": 11}
KERNELS: dict[str, tuple[Any, dict[str, Any], int, int]] = {
    "settle": (step._settle, {"BLOCK": step.COLUMNS}, 4, 0),
    "greedy": (step._greedy, {"PART": 4096, "PARTS": 40, "PARTS_PADDED": 64, "BLOCK": step.LOGITS}, 8, 1),
    "adjust": (sampling._adjust, {"EDITS": 5, "EDITS_PADDED": 8, "SIZE": sampling.ADJUST_BLOCK}, 4, 0),
    "maximum": (sampling._maximum, CUT, 4, 1),
    "count": (sampling._search, {**SEARCH, "WEIGHED": False, "KEY": 1}, 4, 1),
    "weigh": (sampling._search, {**SEARCH, "WEIGHED": True, "KEY": 4}, 4, 1),
    "pick": (sampling._pick, {**CUT, "PARTS": 80, "PARTS_PADDED": 128}, 4, 1),
    "mask": (sampling._mask, {"SIZE": sampling.ADJUST_BLOCK}, 4, 0),
    "note": (sampling._note, {}, 1, 0),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_compiles_without_spills(tmp_path: Path, name: str) -> None:
    kernel, constants, warps, atomics = KERNELS[name]
    arguments = {argument: TYPES.get(argument, "") for argument in kernel.arg_names}
    code = machine_code(kernel, arguments, constants, tmp_path, warps)
    assert code.spills == 0
    found = sum(code.count(instruction) for instruction in ("ATOMG", "RED", "ATOM", "REDG"))
    assert (found > 0) == (atomics > 0)
