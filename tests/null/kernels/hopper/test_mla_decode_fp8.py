# SPDX-License-Identifier: MIT
"""The Gluon kernel of MLA decode over 8 bits becomes the instructions it was written for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from sm90 import SHARED_BYTES_MAX, machine_code

from tokenspeed.kernels.hopper import mla_decode_fp8

POINTERS = {
    **dict.fromkeys(("q_latent", "q_rope", "out"), "*bf16"),
    **dict.fromkeys(("block_table", "context_lens", "records"), "*i32"),
    **dict.fromkeys(("scales", "sums", "stats"), "*fp32"),
}
STRIDES = ("latent_token", "latent_head", "rope_token", "rope_head", "table_row")
STACK_BYTES_MAX = 64
"""Scalars kept on the stack over a row; of fragments and sums nothing is."""


def test_converted_fragments_go_to_the_product_without_shared_memory(tmp_path: Path) -> None:
    code = machine_code(
        mla_decode_fp8._decode,
        {
            **POINTERS,
            "values": f"tensordesc<fp8e4nv[64, 512],{mla_decode_fp8.VALUES!r}>",
            "ropes": f"tensordesc<bf16[64, 64],{mla_decode_fp8.ROPES!r}>",
            **dict.fromkeys(("rows", "each", *STRIDES), "i32"),
            "scale_log2": "fp32",
        },
        {
            "HEADS": 16,
            "N": 16,
            "STAGES": mla_decode_fp8.STAGES,
            "lse": None,
        },
        tmp_path,
    )
    assert code.spills <= STACK_BYTES_MAX
    assert 2 * code.shared_bytes <= SHARED_BYTES_MAX  # two programs share a multiprocessor
    assert (
        code.count("HGMMA.64x16x16.F32") == 64 + 4
    )  # values, from registers: 32 for the scores, 32 for the sums
    assert code.count("HGMMA.64x16x16.F32.BF16") == 4  # rotary parts
    assert code.count("F2FP.F16.E4M3.UNPACK_B") == 256
    assert code.count("HMMA") == 0
