# SPDX-License-Identifier: MIT
"""The Gluon kernel of MLA decode becomes the instructions it was written for, without spills."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch alone")

from sm90 import SHARED_BYTES_MAX, boxes, machine_code

from tokenspeed.kernels import describe
from tokenspeed.kernels.api.attention import MLA_DECODE, SharedBlocks
from tokenspeed.kernels.check import faults
from tokenspeed.kernels.hopper import mla_decode
from tokenspeed.kernels.ref import attention as ref
from tokenspeed.kernels.workspace import counters

POINTERS = {
    **dict.fromkeys(("q_latent", "q_rope", "arena", "out"), "*bf16"),
    **dict.fromkeys(("block_table", "context_lens", "row_starts", "order", "records", "counts"), "*i32"),
    "table_at": "*i64",
    **dict.fromkeys(("lse", "sums", "stats"), "*fp32"),
}
STRIDES = ("latent_token", "latent_head", "rope_token", "rope_head", "table_row")


PLAIN = ("row_starts", "order", "table_at", "lse")


@pytest.mark.parametrize(
    ("heads", "ahead", "lag", "absent", "causal"),
    [
        (16, 0, False, PLAIN, True),
        (128, 1, False, PLAIN, True),
        (128, 4, True, PLAIN, True),
        (16, 4, False, ("order", "table_at"), True),  # ragged rows
        (16, 2, False, (), False),  # a group's shared blocks
        (16, 0, False, ("row_starts", "order"), True),  # what each row has beside them
    ],
)
def test_decode_is_warpgroup_products_fed_by_bulk_copies(
    tmp_path: Path, heads: int, ahead: int, lag: bool, absent: tuple[str, ...], causal: bool
) -> None:
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
            "CAUSAL": causal,
            **dict.fromkeys(absent),
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
    traits = {
        "dtype": torch.bfloat16,
        "heads": heads,
        "latent": 512,
        "rope": 64,
        "block_tokens": 64,
        "kv": "native",
    }
    decode = mla_decode.KERNELS[0]
    for seed, sizes in enumerate(MLA_DECODE.sizes):
        assert not faults(MLA_DECODE, decode, traits, sizes, device, seed)
        assert not counters(device.torch).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("heads", [16, 6])
@pytest.mark.parametrize(
    "groups",
    [
        {},
        {(0, 1, 2, 3, 4, 5, 6): 9},
        {(4, 0, 6): 7, (1, 5): 3},
        {(2, 5): 9},
    ],
)
def test_blocks_read_once_for_a_group_change_nothing(heads: int, groups: dict[tuple[int, ...], int]) -> None:
    device = describe("cuda")
    if device.sm != (9, 0):
        pytest.skip(f"needs sm 9.0, got {device.sm}")
    torch.manual_seed(0)
    cuda, rows, lens = device.torch, 8, [577, 640, 4000, 1000, 577, 900, 2111, 0]
    width = -(-max(lens) // 64)
    table = torch.randperm(rows * width, device=cuda).to(torch.int32).view(rows, width)
    for members, blocks in groups.items():
        table[list(members), :blocks] = table[members[0], :blocks]
    arena = torch.randn(rows * width, 64, 576, device=cuda, dtype=torch.bfloat16)
    q = torch.randn(rows, heads, 576, device=cuda, dtype=torch.bfloat16)
    context_lens = torch.tensor(lens, dtype=torch.int32, device=cuda)
    decode = mla_decode.MLADecode(heads, device.cores)
    given = (q[..., :512].contiguous(), q[..., 512:], arena, table, context_lens, 576**-0.5)
    log_sums = torch.empty(rows, heads, device=cuda)
    shared = shared_blocks(groups, lens, width, cuda)
    for _ in range(2):  # counters are back at zero for the second
        found = decode(*given, shared=shared, lse=log_sums)
    torch.testing.assert_close(found.float(), ref.mla_decode(*given).float(), atol=2e-2, rtol=2e-2)
    assert not counters(cuda).any()


def shared_blocks(
    groups: dict[tuple[int, ...], int], lens: list[int], width: int, device: torch.device
) -> SharedBlocks:
    """As `exec.batch` lays it out: as many groups as there can be, those that are not have no context."""
    rows, most = len(lens), len(lens) // 2
    order = [row for members in groups for row in members]
    starts = [0, *accumulate(len(members) for members in groups)]
    common = dict.fromkeys(range(rows), 0) | {
        row: blocks for members, blocks in groups.items() for row in members
    }
    empty = most - len(groups)

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return SharedBlocks(
        order=int32(order + [0] * (rows - len(order))),
        row_starts=int32(starts + [len(order)] * empty),
        context_lens=int32([64 * blocks for blocks in groups.values()] + [0] * empty),
        table_at=torch.tensor([members[0] * width for members in groups] + [0] * empty, device=device),
        own_lens=int32([lens[row] - 64 * common[row] for row in range(rows)]),
        own_at=torch.tensor([row * width + common[row] for row in range(rows)], device=device),
        place_of=int32([order.index(row) if row in order else -1 for row in range(rows)]),
    )
