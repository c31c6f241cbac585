# SPDX-License-Identifier: MIT
"""The Gluon kernels of prefill and GQA decode become the instructions they were written for, without spills."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

import triton
from sm90 import SHARED_BYTES_MAX, boxes, machine_code

from tokenspeed.kernels.hopper import flash, gqa_decode, prefill

STRIDES = dict.fromkeys(("q_token", "q_head", "out_token", "out_head", "table_row", "q_row"), "i32")
INPUTS = {
    "q": "*bf16",
    "out": "*bf16",
    "block_table": "*i32",
    "row_starts": "*i32",
    "context_lens": "*i32",
    "counts": "*i32",
    "sums": "*fp32",
    "stats": "*fp32",
    "parts": "i32",
    "rows": "i32",
    "heads": "i32",
    "scale_log2": "fp32",
    **STRIDES,
}


def test_raised_prefill_is_warpgroup_products_fed_by_bulk_copies(tmp_path: Path) -> None:
    keys, rows = prefill.KEYS, prefill.ROWS
    copied = {"raised": boxes(keys, 128), "shared": boxes(keys, 64)}
    queries = {"q": boxes(rows, 1, 128), "q_shared": boxes(rows, 1, 64)}
    code = machine_code(
        flash.attend_raised,
        {**INPUTS, **copied, **queries, "s_at": "i32"},
        {"STAGES": prefill.STAGES, "SPLIT": False},
        tmp_path,
    )
    assert code.spills == 0
    assert code.shared_bytes <= SHARED_BYTES_MAX
    assert code.count("HGMMA") >= 2 * 3 * (192 + 128) // 16  # two warpgroups, three places in the loop
    assert code.count("HMMA") == 0
    assert code.count("UTMALDG") >= 3 * 2 + 2  # boxes of 128 columns are two copies
    assert code.count("USETMAXREG") > 0


@pytest.mark.parametrize(
    ("head_dim", "block_tokens", "group"), [(128, 64, 4), (64, 16, 7)], ids=["llama", "small"]
)
def test_paged_prefill_is_warpgroup_products_fed_by_bulk_copies(
    tmp_path: Path, head_dim: int, block_tokens: int, group: int
) -> None:
    lanes = triton.next_power_of_2(group)
    box = boxes(block_tokens, head_dim)
    code = machine_code(
        flash.attend_paged,
        {**INPUTS, "q": boxes(prefill.ROWS // lanes, lanes, head_dim), "k_arena": box, "v_arena": box},
        {"GROUP": group, "KEYS": prefill.KEYS, "STAGES": prefill.STAGES, "SPLIT": False},
        tmp_path,
    )
    assert code.spills == 0
    assert code.shared_bytes <= SHARED_BYTES_MAX
    assert code.count("HGMMA") >= 2 * 3 * (head_dim // 16 + prefill.KEYS // 16)
    assert code.count("HMMA") == 0
    assert code.count("UTMALDG") > 0


def test_prefill_in_parts_keeps_its_loop_in_registers(tmp_path: Path) -> None:
    box = boxes(64, 128)
    code = machine_code(
        flash.attend_paged,
        {**INPUTS, "q": boxes(32, 4, 128), "k_arena": box, "v_arena": box},
        {"GROUP": 4, "KEYS": prefill.KEYS, "STAGES": prefill.STAGES, "SPLIT": True},
        tmp_path,
    )
    assert code.stack_bytes <= 32  # per job, of what the launch told; sums would be kilobytes
    assert code.shared_bytes <= SHARED_BYTES_MAX


@pytest.mark.parametrize(("kv_heads", "group"), [(8, 4), (4, 8), (1, 16)])
def test_gqa_decode_keeps_its_ring_and_spills_nothing(tmp_path: Path, kv_heads: int, group: int) -> None:
    tile, lanes = gqa_decode.TILE, triton.next_power_of_2(group)
    box = boxes(min(64, tile), 128)
    code = machine_code(
        gqa_decode._decode,
        {**INPUTS, "k_arena": box, "v_arena": box},
        {
            "KV_HEADS": kv_heads,
            "GROUP": group,
            "DIM": 128,
            "BLOCK_TOKENS": 64,
            "M": 16,
            "TILE": tile,
            "ROWS": gqa_decode.ROWS_LEAST,
            "STAGES": gqa_decode.RING_BYTES // (4 * tile * 128),
            "LEAST": gqa_decode.TILES_LEAST,
            "PARTS": gqa_decode.MERGED_ELEMENTS // (lanes * 128),
        },
        tmp_path,
    )
    assert code.spills == 0
    assert code.shared_bytes <= SHARED_BYTES_MAX
    assert code.count("HMMA") == 2 * tile // 8 * 128 // 16 // 4  # each product once, spread over four warps
    assert code.count("UTMALDG") > 0
