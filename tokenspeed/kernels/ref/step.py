# SPDX-License-Identifier: MIT
"""Both ends of a step, written plainly: what only the device knows goes in, the likeliest token comes out.

In: ids, slots, tables, logits. Out: the arguments that say so, changed. Nothing waits for the device, so a
graph may hold these as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def settle(ids: Tensor, slots: Tensor, last_tokens: Tensor, table: Tensor, block_table: Tensor) -> Tensor:
    """Put the last token of its slot for each negative id, and gather the rows' block table."""
    torch.where(ids < 0, last_tokens[slots[: ids.shape[0]]], ids, out=ids)
    return torch.index_select(table[:, : block_table.shape[1]], 0, slots, out=block_table)


def greedy(logits: Tensor, slots: Tensor, last_tokens: Tensor, chosen: Tensor) -> Tensor:
    """Choose each row's likeliest token, note it as its slot's last; -1 where the row is at fault."""
    best, ids = logits.max(-1)
    finite = best.isfinite()
    last_tokens.index_copy_(0, slots, torch.where(finite, ids, 0))
    return chosen.copy_(torch.where(finite, ids, -1))
