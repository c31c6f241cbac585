# SPDX-License-Identifier: MIT
"""A plan, laid out as tensors at fixed addresses.

In: a `Plan`. Out: `StepInputs`, views of buffers that are allocated once and overwritten by the next step
but one. Keeps the block table of every slot (a plan brings only changes) and each slot's last sampled
token, which stands in for the -1 of a token that is still in flight. All arithmetic is numpy on the host;
then one copy, in stream order. On a CPU the tensors are the host arrays and nothing is copied. Does not run
anything.

    host, one of two stagings                device
    [ids|positions|writes|rows...] --copy--> [ids|positions|writes|rows...]   StepInputs are views of these
    table changes, if any          --copy--> table [slots, Bmax] --gather rows--> block_table [R, B]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed.control import Plan
from tokenspeed.layers.step import StepInputs

_ALIGN_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What the buffers are made for; no plan exceeds it."""

    slots: int
    rows: int
    tokens: int
    context_tokens: int
    block_tokens: int

    @property
    def blocks_per_row(self) -> int:
        return -(-self.context_tokens // self.block_tokens)


class Batch:
    """The buffers of one executor. `lay` may be called again once the step before the last was retired."""

    def __init__(self, limits: BatchLimits, device: torch.device, *, mirrored: bool | None = None) -> None:
        """`mirrored`: the device has memory of its own; given only to test on a CPU what a GPU does."""
        self.limits = limits
        self._device = device
        self._mirrored = device.type != "cpu" if mirrored is None else mirrored
        self._stagings = [_Staging(limits, device) for _ in range(2 if self._mirrored else 1)]
        self._turn = 0
        self._on_device = _Staging(limits, device, on_device=True) if self._mirrored else self._stagings[0]
        self._table_host = np.zeros((limits.slots, limits.blocks_per_row), dtype=np.int32)
        self._table = torch.zeros(self._table_host.shape, dtype=torch.int32, device=device)
        self._rows_table = torch.zeros(limits.rows * limits.blocks_per_row, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(limits.slots, dtype=torch.int64, device=device)
        """[slots] the token each slot sampled last."""
        self._token_numbers = np.arange(limits.tokens, dtype=np.int64)

    def lay(self, plan: Plan) -> StepInputs:
        """The tensors of `plan`."""
        self._apply_deltas(plan)
        staging = self._stagings[self._turn]
        self._turn = (self._turn + 1) % len(self._stagings)
        rows, tokens, sampled = self._fill(staging, plan)
        at = self._on_device
        if staging is not at:
            at.memory.copy_(staging.memory, non_blocking=True)
        if (plan.tokens[: plan.decode_rows] < 0).any():
            self._resolve_in_flight(at, plan.decode_rows)
        context_lens = staging.context_lens[:rows]
        return StepInputs(
            token_ids=at.tensor_token_ids[:tokens],
            positions=at.tensor_positions[:tokens],
            write_index=at.tensor_write_index[:tokens],
            decode_rows=plan.decode_rows,
            rows=rows,
            row_starts=at.tensor_row_starts[: rows + 1],
            context_lens=at.tensor_context_lens[:rows],
            block_table=self._gather_table(at, plan.slots, int(context_lens.max())),
            sample_index=at.tensor_sample_index[:sampled],
            row_starts_np=staging.row_starts[: rows + 1],
            context_lens_np=context_lens,
        )

    def note_last(self, tokens: torch.Tensor) -> None:
        """Remember what the sampled rows of the plan just laid chose (tokens [S] int64), in stream order."""
        self.last_tokens.index_copy_(0, self._on_device.tensor_sample_slots[: len(tokens)], tokens)

    def blocks_of(self, slot: int, context_tokens: int) -> NDArray[np.int32]:
        """Block ids [n] that hold the first `context_tokens` of a slot."""
        return self._table_host[slot, : -(-context_tokens // self.limits.block_tokens)].copy()

    def _fill(self, staging: _Staging, plan: Plan) -> tuple[int, int, int]:
        """Write everything the host knows; (rows, tokens, sampled rows)."""
        block_tokens = self.limits.block_tokens
        starts, lengths, slots, ids = plan.starts, plan.lengths, plan.slots, plan.tokens
        rows, tokens = plan.rows, len(ids)
        row_starts = staging.row_starts[: rows + 1]
        np.cumsum(lengths, dtype=np.int32, out=row_starts[1:])
        np.add(starts, lengths, out=staging.context_lens[:rows])
        positions = staging.positions[:tokens]
        if tokens == rows:
            positions[:] = starts
            token_slots = slots
        else:
            np.add(np.repeat(starts - row_starts[:-1], lengths), self._token_numbers[:tokens], out=positions)
            token_slots = np.repeat(slots, lengths)
        staging.token_ids[:tokens] = ids
        block_index, offset = np.divmod(positions, block_tokens)
        writes = staging.write_index[:tokens]
        writes[:] = self._table_host[token_slots, block_index]
        writes *= block_tokens
        writes += offset
        staging.slots[:rows] = slots
        mask = plan.sampled.view(np.bool_)
        ends = row_starts[1:][mask]
        np.subtract(ends, 1, out=staging.sample_index[: len(ends)], casting="unsafe")
        staging.sample_slots[: len(ends)] = slots[mask]
        return rows, tokens, len(ends)

    def _apply_deltas(self, plan: Plan) -> None:
        if not len(plan.table_slots):
            return
        self._table_host[plan.table_slots, plan.table_indexes] = plan.table_blocks
        if self._mirrored:
            flat = plan.table_slots.astype(np.int64) * self.limits.blocks_per_row + plan.table_indexes
            flat = np.unique(flat)  # a later change of an entry wins, which the host's table already knows
            where, blocks = (self._upload(array) for array in (flat, self._table_host.reshape(-1)[flat]))
            self._table.view(-1).index_copy_(0, where, blocks)

    def _upload(self, array: NDArray[np.integer]) -> torch.Tensor:
        host = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)

    def _gather_table(self, at: _Staging, slots: NDArray[np.int32], context_tokens: int) -> torch.Tensor:
        """[R, B]: the tables of the planned rows, as wide as the longest needs, dense."""
        rows = len(slots)
        width = -(-context_tokens // self.limits.block_tokens)
        out = self._rows_table[: rows * width].view(rows, width)
        if self._mirrored:
            torch.index_select(self._table[:, :width], 0, at.tensor_slots[:rows], out=out)
        else:
            np.take(self._table_host[:, :width], slots, axis=0, out=out.numpy(), mode="clip")
        return out

    def _resolve_in_flight(self, at: _Staging, decode_rows: int) -> None:
        """Put the slot's last token where the plan could only say -1; that happens in decode rows alone."""
        if self._mirrored:
            ids = at.tensor_token_ids[:decode_rows]
            torch.where(ids < 0, self.last_tokens[at.tensor_slots[:decode_rows]], ids, out=ids)
        else:  # three launches of torch cost as much as all of `_fill`
            ids, last = at.token_ids[:decode_rows], self.last_tokens.numpy()[at.slots[:decode_rows]]
            np.copyto(ids, last, where=ids < 0)


class _Staging:
    """One block of memory with a step's integers in it: numpy views on the host, and tensors."""

    def __init__(self, limits: BatchLimits, device: torch.device, *, on_device: bool = False) -> None:
        fields = {
            "token_ids": (limits.tokens, torch.int64),
            "positions": (limits.tokens, torch.int64),
            "write_index": (limits.tokens, torch.int64),
            "slots": (limits.rows, torch.int64),
            "sample_index": (limits.rows, torch.int64),
            "sample_slots": (limits.rows, torch.int64),
            "row_starts": (limits.rows + 1, torch.int32),
            "context_lens": (limits.rows, torch.int32),
        }
        ends: dict[str, int] = {}
        size = 0
        for name, (count, dtype) in fields.items():
            size = -(-size // _ALIGN_BYTES) * _ALIGN_BYTES + count * dtype.itemsize
            ends[name] = size
        pinned = device.type == "cuda" and not on_device
        where = device if on_device else torch.device("cpu")
        self.memory = torch.zeros(size, dtype=torch.uint8, device=where, pin_memory=pinned)

        def tensor(name: str) -> torch.Tensor:
            count, dtype = fields[name]
            return self.memory[ends[name] - count * dtype.itemsize : ends[name]].view(dtype)

        self.tensor_token_ids = tensor("token_ids")
        self.tensor_positions = tensor("positions")
        self.tensor_write_index = tensor("write_index")
        self.tensor_slots = tensor("slots")
        self.tensor_sample_index = tensor("sample_index")
        self.tensor_sample_slots = tensor("sample_slots")
        self.tensor_row_starts = tensor("row_starts")
        self.tensor_context_lens = tensor("context_lens")
        if on_device:
            return
        self.token_ids: NDArray[np.int64] = self.tensor_token_ids.numpy()
        self.positions: NDArray[np.int64] = self.tensor_positions.numpy()
        self.write_index: NDArray[np.int64] = self.tensor_write_index.numpy()
        self.slots: NDArray[np.int64] = self.tensor_slots.numpy()
        self.sample_index: NDArray[np.int64] = self.tensor_sample_index.numpy()
        self.sample_slots: NDArray[np.int64] = self.tensor_sample_slots.numpy()
        self.row_starts: NDArray[np.int32] = self.tensor_row_starts.numpy()
        self.context_lens: NDArray[np.int32] = self.tensor_context_lens.numpy()
