# SPDX-License-Identifier: MIT
"""Lists of memory to fetch: whole pieces, in order, no more than asked for."""

from __future__ import annotations

import torch

from tokenspeed import kernels
from tokenspeed.kernels.ahead import PIECE_BYTES


def test_pieces_cover_each_tensor_and_stay_inside() -> None:
    one, other = torch.zeros(3 * PIECE_BYTES + 5, dtype=torch.uint8), torch.zeros(PIECE_BYTES // 4)
    listed = kernels.pieces((one, other), 1 << 20)
    assert listed is not None
    starts = [one.data_ptr() + piece * PIECE_BYTES for piece in range(3)]
    assert listed.tolist() == [*starts, other.data_ptr()]


def test_no_more_bytes_than_asked_for() -> None:
    listed = kernels.pieces((torch.zeros(9 * PIECE_BYTES, dtype=torch.uint8),), 2 * PIECE_BYTES + 1)
    assert listed is not None
    assert len(listed) == 2


def test_nothing_to_fetch_is_no_list() -> None:
    assert kernels.pieces((), 1 << 20) is None
    assert kernels.pieces((torch.zeros(3),), 1 << 20) is None
