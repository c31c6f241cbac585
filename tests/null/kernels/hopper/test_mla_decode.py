# SPDX-License-Identifier: MIT
"""The Gluon kernel of MLA decode becomes the instructions it was written for, without spills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from sm90 import SHARED_BYTES_MAX, boxes, machine_code

from tokenspeed.kernels import describe
from tokenspeed.kernels.api.attention import MLA_DECODE
from tokenspeed.kernels.check import faults
from tokenspeed.kernels.hopper import mla_decode
from tokenspeed.kernels.ref import attention as ref
from tokenspeed.kernels.spec import Plain
from tokenspeed.kernels.workspace import counters

POINTERS = {
    **dict.fromkeys(("q_latent", "q_rope", "arena", "out"), "*bf16"),
    **dict.fromkeys(("block_table", "context_lens", "row_starts", "records", "counts"), "*i32"),
    **dict.fromkeys(("lse", "sums", "stats"), "*fp32"),
}
STRIDES = ("latent_token", "latent_head", "rope_token", "rope_head", "table_row")


@pytest.mark.parametrize(
    ("heads", "ahead", "lag", "ragged"),
    [(16, 0, False, False), (128, 1, False, False), (128, 4, True, False), (16, 4, False, True)],
)
def test_decode_is_warpgroup_products_fed_by_bulk_copies(
    tmp_path: Path, heads: int, ahead: int, lag: bool, ragged: bool
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
            "AHEAD": ahead,
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
    assert code.count("UBLKPF") == (ahead > 0)
    assert code.count("USETMAXREG") > 0


def test_what_is_asked_for_ahead_fits_the_cache() -> None:
    assert [mla_decode.ahead(132 // blocks) for blocks in (1, 2, 3, 4, 8, 132)] == [0, 1, 2, 4, 4, 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("heads", [16, 6, 128])
def test_decode_agrees_with_reference_ragged_and_with_log_sums(heads: int) -> None:
    device = describe("cuda")
    if device.sm != (9, 0):
        pytest.skip(f"needs sm 9.0, got {device.sm}")
    traits = {"dtype": torch.bfloat16, "heads": heads, "latent": 512, "rope": 64, "block_tokens": 64}
    decode = mla_decode.MLADecode(heads, device.cores, portable=ref.mla_decode)
    ungated = replace(mla_decode.KERNELS[0], build=Plain(decode.attend))
    for seed, sizes in enumerate(MLA_DECODE.sizes):
        assert not faults(MLA_DECODE, ungated, traits, sizes, device, seed)
        assert not counters(device.torch).any()
