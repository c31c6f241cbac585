# SPDX-License-Identifier: MIT
"""The Gluon kernel of MLA decode becomes the instructions it was written for, without spills."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from sm90 import SHARED_BYTES_MAX, boxes, machine_code

from tokenspeed.kernels.hopper import mla_decode

POINTERS = {
    **dict.fromkeys(("q_latent", "q_rope", "arena", "out"), "*bf16"),
    **dict.fromkeys(("block_table", "context_lens", "row_starts", "records", "counts"), "*i32"),
    **dict.fromkeys(("lse", "sums", "stats"), "*fp32"),
}
STRIDES = ("latent_token", "latent_head", "rope_token", "rope_head", "table_row")


@pytest.mark.parametrize(
    ("heads", "lag", "ragged"), [(16, False, False), (128, True, False), (16, True, True)]
)
def test_decode_is_warpgroup_products_fed_by_bulk_copies(
    tmp_path: Path, heads: int, lag: bool, ragged: bool
) -> None:
    absent = {} if ragged else {"row_starts": None, "lse": None}
    code = machine_code(
        mla_decode._decode64,
        {
            **{name: kind for name, kind in POINTERS.items() if name not in absent},
            **dict.fromkeys(("rows", "each", *STRIDES), "i32"),
            "scale_log2": "fp32",
            "latents": boxes(64, 256),
            "ropes": boxes(64, 64),
        },
        {
            "HEADS": heads,
            "STAGES": mla_decode.STAGES,
            "M": 64,
            "LAG": lag,
            "AHEAD": mla_decode.AHEAD,
            **absent,
        },
        tmp_path,
    )
    assert code.spills == 0
    assert code.shared_bytes <= SHARED_BYTES_MAX
    assert code.count("HGMMA.64x64x16.F32.BF16") == (512 + 64) // 16
    assert code.count("HGMMA.64x256x16.F32.BF16") == 2 * 64 // 16
    assert code.count("HMMA") == 0
    assert code.count("UTMALDG") == 9
    assert code.count("USETMAXREG") > 0
