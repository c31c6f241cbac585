# SPDX-License-Identifier: MIT
"""The mixture's kernels become matrix-unit code fed by bulk copies, and their plans are found and fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from tests.null.kernels.hopper.sm90 import SHARED_BYTES_MAX, machine_code
from tokenspeed.kernels import Device
from tokenspeed.kernels.triton import moe, moe_few, moe_few_fp8, moe_gate, moe_many, moe_weights, tuned

MOONLIGHT = {"C": 2048, "F": 1408, "E": 64, "S": 2, "TOP": 6}
SHAPE = {
    "dtype": "bfloat16",
    "format": "native",
    "experts": 64,
    "shared": 2,
    "top_k": 6,
    "width": 2048,
    "ffn": 1408,
}
INPUTS = {
    "x": "*bf16",
    "x_stride": "i32",
    "hidden": "*bf16",
    "ids": "*i32",
    "weights": "*fp32",
    "scale": "*fp32",
    "parts": "*fp32",
    "y": "*bf16",
    "counters": "*i32",
    "order": "*i32",
    "starts": "*i32",
    "tokens": "i32",
}


def cut(tile: moe_few.Tile | moe_many.Tile) -> dict[str, Any]:
    known = {"pairs": "PAIRS", "rows": "ROWS", "depth": "DEPTH", "stages": "STAGES", "group": "GROUP"}
    return {name: getattr(tile, field) for field, name in known.items() if hasattr(tile, field)}


def box(format: str, tile: moe_few.Tile | moe_many.Tile) -> str:
    held = {"native": "bf16", "int8": "i8", "fp8_block": "fp8e4nv"}[format]
    return f"tensordesc<{held}[{tile.rows},{tile.depth}]>"


@pytest.mark.parametrize(("tokens", "format"), [(1, "native"), (64, "native"), (16, "int8")])
def test_few_tokens_stream_weights_by_bulk_copies_into_warpgroup_products(
    tmp_path: Path, tokens: int, format: str
) -> None:
    plan = moe.plan_of({**SHAPE, "format": format}, Device(type="cpu"), tokens)
    assert isinstance(plan, moe_few.Plan)
    tile = max(16, tokens)
    common = {**MOONLIGHT, "PRECISION": "tf32", "FORMAT": format, "SINGLE": tokens == 1, "E_PAD": 64,
              "PAIRS_PAD": 8 * tile, "TOP_PAD": 8, "TOKENS": tile, "EARLY": True}  # fmt: skip
    first = machine_code(
        moe_few._gate_up, {**INPUTS, "w13": box(format, plan.up)}, {**common, **cut(plan.up)}, tmp_path,
        plan.up.warps,
    )  # fmt: skip
    second = machine_code(
        moe_few._down, {**INPUTS, "w2": box(format, plan.down)}, {**common, **cut(plan.down)}, tmp_path,
        plan.down.warps,
    )  # fmt: skip
    for code in (first, second):
        assert code.spills == 0
        assert code.shared_bytes <= SHARED_BYTES_MAX
        assert code.count("HGMMA") > 0
        assert code.count("HMMA") == 0
        assert code.count("UTMALDG") > 0


@pytest.mark.parametrize("tokens", [16, 64])
def test_few_tokens_convert_8_bit_weights_on_the_way_to_the_product(tmp_path: Path, tokens: int) -> None:
    """From shared memory as they are, converted in registers, multiplied: nothing is written back in 16 bits."""
    plan = moe.plan_of({**SHAPE, "format": "fp8_block"}, Device(type="cpu"), tokens)
    assert isinstance(plan, moe_few.Plan)
    common = {**MOONLIGHT, "SINGLE": False, "E_PAD": 64, "PAIRS_PAD": 8 * tokens, "TOP_PAD": 8, "TOKENS": tokens,
              "SLOTS": tokens // 2 if tokens > 32 else 16, "EARLY": True}  # fmt: skip
    for kernel, weight, tile in (
        (moe_few_fp8._gate_up_fp8, "w13", plan.up),
        (moe_few_fp8._down_fp8, "w2", plan.down),
    ):
        code = machine_code(
            kernel, {**INPUTS, "hidden": "*fp16", weight: box("fp8_block", tile)}, {**common, **cut(tile)}, tmp_path,
            tile.warps,
        )  # fmt: skip
        assert code.spills <= 16  # a scalar; of fragments nothing
        assert 2 * code.shared_bytes <= SHARED_BYTES_MAX
        assert code.count("HMMA") > 0
        assert code.count("HGMMA") == 0
        assert code.count("UTMALDG") > 0
        halves = tile.rows * 128 * (2 if weight == "w13" else 1) // (64 * tile.warps)  # two numbers a thread
        assert code.count("F2FP.F16.E4M3.UNPACK_B") == halves
        assert code.count("LDSM.16.M88.4") >= halves // 8


@pytest.mark.parametrize("format", ["native", "fp8_block"])
def test_many_tokens_are_warpgroup_products(tmp_path: Path, format: str) -> None:
    plan = moe.plan_of({**SHAPE, "format": format}, Device(type="cpu"), 8192)
    assert isinstance(plan, moe_many.Plan)
    common = {**MOONLIGHT, "PRECISION": "tf32", "FORMAT": format, "E_PAD": 128}
    up = machine_code(
        moe_many._gate_up, {**INPUTS, "w13": box(format, plan.up)}, {**common, **cut(plan.up)}, tmp_path,
        plan.up.warps,
    )  # fmt: skip
    rows = f"tensordesc<bf16[{plan.down.pairs},{plan.down.depth}]>"
    down = machine_code(
        moe_many._down, {**INPUTS, "parts": "*bf16", "hidden": rows, "w2": box(format, plan.down)},
        {**common, **cut(plan.down)}, tmp_path, plan.down.warps,
    )  # fmt: skip
    for code in (up, down):
        assert code.spills == 0
        assert code.shared_bytes <= SHARED_BYTES_MAX
        assert code.count("HGMMA") > 0
        assert code.count("UTMALDG") > 0


def gate_of(held: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Arguments and constants of both forms of a gate of 64 experts."""
    return (
        {"x": "*bf16", "x_stride": "i32", "w": f"*{held}", "bias": "*fp32", "write_index": "*i64", "shares": "*fp32",
         "ids": "*i32", "weights": "*fp32", "tokens": "i32", "scale": "fp32"},
        {"C": 2048, "EARLY": True, "E": 64, "PADDED": True, "TOP": 6, "G": 1, "G_TOP": 1, "SIGMOID": True,
         "TOP2": True, "BIASED": True, "NORMALISE": True, "E_PAD": 64, "TOP_PAD": 8, "G_PAD": 1,
         "RANKED": moe_gate.RANKED_MAX},
    )  # fmt: skip


@pytest.mark.parametrize("held", ["bf16", "fp32"])
def test_gate_does_not_spill(tmp_path: Path, held: str) -> None:
    how = moe_gate.cut(16, 2048, 64, 2 if held == "bf16" else 4)
    arguments, constants = gate_of(held)
    constants |= {"SPAN": how.span, "DEPTH": how.depth, "SHARES": how.shares, "TOKENS": 16}
    code = machine_code(moe_gate._gate, arguments | {"counters": "*i32"}, constants, tmp_path)
    assert code.spills == 0


@pytest.mark.parametrize("tokens", [1, moe_gate.FEW])
def test_gate_of_few_tokens_has_its_row_before_it_waits(tmp_path: Path, tokens: int) -> None:
    arguments, constants = gate_of("bf16")
    arguments |= {
        **dict.fromkeys(("residual", "gain", "normed", "summed"), "*bf16"),
        "arrivals": "*i32",
        "eps": "fp32",
    }
    constants |= {"TOKENS": tokens, "WIDTH": 2048, "NORMED": True}
    code = machine_code(moe_gate._gate_few, arguments, constants, tmp_path)
    assert code.spills == 0
    assert code.assembly[: code.assembly.index("ACQBULK")].count("LDG.E.128") == 4


def test_gate_is_held_narrow_only_where_that_changes_no_number() -> None:
    weight = torch.randn(8, 16)
    narrow = weight.to(torch.bfloat16)
    assert moe_gate.gate_prepare(weight, x_dtype=torch.bfloat16).dtype is torch.float32
    assert moe_gate.gate_prepare(narrow.float(), x_dtype=torch.bfloat16).dtype is torch.bfloat16


def test_shared_experts_are_stacked_behind_the_routed_ones() -> None:
    experts, shared, width, ffn = 3, 2, 8, 4
    w13, w2 = torch.randn(experts, 2 * ffn, width), torch.randn(experts, width, ffn)
    shared13, shared2 = torch.randn(2 * shared * ffn, width), torch.randn(width, shared * ffn)
    stacked = moe_weights.prepare(w13, w2, shared13, shared2)
    gate, up = shared13.chunk(2)
    for s in range(shared):
        mine = slice(s * ffn, (s + 1) * ffn)
        assert torch.equal(stacked.w13[experts + s], torch.cat([gate[mine], up[mine]]))
        assert torch.equal(stacked.w2[experts + s], shared2[:, mine])
    assert stacked.shared == shared


def test_plan_is_that_of_the_next_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "TUNED", tmp_path)
    found = [tuned.Entry(SHAPE, tokens, {"for": tokens}, 1.0) for tokens in (4, 64)]
    tuned.write("op", "A GPU", 1, found)
    asked = {tokens: tuned.plan_for("op", "A GPU", 1, SHAPE, tokens) for tokens in (1, 4, 5, 65)}
    assert asked == {1: {"for": 4}, 4: {"for": 4}, 5: {"for": 64}, 65: {"for": 64}}
    assert tuned.plan_for("op", "A GPU", 2, SHAPE, 1) is None
    assert tuned.plan_for("op", "another", 1, SHAPE, 1) is None
    assert tuned.plan_for("op", "A GPU", 1, {**SHAPE, "experts": 8}, 1) is None


def test_shipped_plans_are_readable_and_of_this_version() -> None:
    for path in tuned.TUNED.glob(f"{moe.OP}.*.json"):
        held = json.loads(path.read_text())
        assert held["version"] == moe.VERSION
        for of in held["shapes"]:
            assert set(of["shape"]) == set(moe.SHAPE)
            for one in of["plans"]:
                moe.plan_from(one["plan"])
