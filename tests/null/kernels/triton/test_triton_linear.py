# SPDX-License-Identifier: MIT
"""Products are cut so that they fill a device and never cut through a block of scales; the kernels spill nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from tests.null.kernels.hopper.sm90 import SHARED_BYTES_MAX, machine_code
from tokenspeed.kernels.triton import absorb, linear, stream
from tokenspeed.kernels.triton.launch import power_of_2

CORES = 132
SHAPES = [(3648, 2048), (2048, 2048), (163840, 2048), (2048, 11264), (24576, 4096), (96, 64), (1, 200)]
POINTERS = {"native": "*bf16", "int8": "*i8", "fp8_block": "*fp8e4nv"}
STRIDES = dict.fromkeys(("x_token", "x_head", "y_token", "y_head", "x_group", "y_group", "outs"), "i32")


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16, 64])
def test_tiling_covers_the_weight_once_and_stays_within_blocks(
    outputs: int, inputs: int, tokens: int
) -> None:
    for depth_max in (linear.DEPTH_MAX, linear.BLOCK_DEPTH):
        cut = linear.tiling(outputs, inputs, 1, tokens, CORES, depth_max)
        assert power_of_2(cut.rows) == cut.rows
        assert cut.rows <= 128
        assert cut.depth or tokens <= stream.FEW
        assert cut.depth <= depth_max
        assert cut.parts <= max(1, -(-inputs // max(cut.depth, 1)))


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES[:5])
@pytest.mark.parametrize("tokens", [1, 4, 16, 64])
def test_blocks_of_a_large_product_fill_the_device(outputs: int, inputs: int, tokens: int) -> None:
    cut = linear.tiling(outputs, inputs, 1, tokens, CORES)
    assert 3 * -(-outputs // cut.rows) * cut.parts >= 2 * CORES


def test_products_of_heads_are_whole_in_depth_where_there_are_blocks_enough() -> None:
    assert linear.heads_tiling(128, 512, 16, 32, CORES) == stream.Tiling(linear.HEADS_ROWS, 512)
    assert linear.heads_tiling(128, 512, 16, 1, CORES) == linear.tiling(128, 512, 16, 1, CORES)
    assert linear.heads_tiling(128, 512, 4, 32, CORES) == linear.tiling(128, 512, 4, 32, CORES)


def test_tokens_share_a_tiling_where_they_share_a_kernel() -> None:
    cuts = linear.by_tokens(lambda tokens: linear.tiling(2048, 2048, 1, tokens, CORES))
    assert len(cuts) == stream.TOKENS_MAX + 1
    assert len(set(cuts[5:9])) == len(set(cuts[17:33])) == 1


def compiled(
    kernel: Any, arguments: dict[str, str], constants: dict[str, Any], path: Path, warps: int
) -> Any:
    code = machine_code(kernel, {**STRIDES, **arguments}, {"EARLY": True, **constants}, path, warps)
    assert code.spills == 0
    assert code.shared_bytes <= SHARED_BYTES_MAX
    assert code.count("ACQBULK") > 0
    return code


def stored(format: str) -> tuple[dict[str, str], dict[str, Any]]:
    """A weight's arguments and constants in a format."""
    plain = {"w": POINTERS[format], "x": "*bf16", "y": "*bf16"}
    scaled = {} if format == "native" else {"scale": "*fp32"}
    return {**plain, **scaled}, {"FORMAT": format, "BIASED": False, "bias": None} | (
        {"scale": None} if format == "native" else {}
    )


@pytest.mark.parametrize("format", POINTERS)
def test_few_tokens_ask_for_weights_before_they_wait(tmp_path: Path, format: str) -> None:
    cut = linear.tiling(2048, 2048, 1, 1, CORES)
    arguments, constants = stored(format)
    constants |= {"INS": 2048, "T": 1, "ROWS": cut.rows, "DEPTH": 2048}
    code = compiled(stream._few, arguments, constants, tmp_path, cut.warps)
    waits = code.assembly.index("ACQBULK")
    loads = cut.rows * 2048 * (2 if format == "native" else 1) // (16 * 32 * cut.warps)
    assert code.assembly[:waits].count("LDG.E.128") >= loads


@pytest.mark.parametrize(("tokens", "format"), [(16, "native"), (64, "native"), (16, "fp8_block")])
def test_tiles_are_warpgroup_products(tmp_path: Path, tokens: int, format: str) -> None:
    cut = linear.tiling(2048, 2048, 1, tokens, CORES, 128 if format == "fp8_block" else linear.DEPTH_MAX)
    arguments, constants = stored(format)
    arguments |= {"partials": "*fp32", "arrivals": "*i32", "T": "i32"}
    constants |= {"INS": 2048, "TOKENS": tokens, "ROWS": cut.rows, "DEPTH": cut.depth, "PARTS": cut.parts}
    code = compiled(stream._tiles, arguments, {**constants, "STAGES": cut.stages}, tmp_path, cut.warps)
    assert code.count("HGMMA") > 0


def test_absorption_asks_for_weights_before_it_waits(tmp_path: Path) -> None:
    tensors = ("q", "latent", "k_rope", "norm", "arena", "w", "q_latent", "q_rope")
    arguments = {
        **dict.fromkeys(tensors, "*bf16"),
        **dict.fromkeys(("q_token", "q_head", "latent_token", "k_token", "T"), "i32"),
        "eps": "fp32",
        "cos_sin": "*fp32",
        "positions": "*i64",
        "write_index": "*i64",
    }
    constants = {"H": 16, "L": 512, "NOPE": 128, "ROT": 64, "TOKENS": 16, "ROWS": absorb.ROWS, "DEPTH": 128,
                 "PAIRS": 32, "WIDTH": 512, "TILE": 8, "INTERLEAVED": True}  # fmt: skip
    code = compiled(absorb._absorb_write, arguments, constants, tmp_path, 4)
    assert code.assembly[: code.assembly.index("ACQBULK")].count("LDG.E.128") == 8
