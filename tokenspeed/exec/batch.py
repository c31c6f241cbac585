# SPDX-License-Identifier: MIT
"""A plan, laid out as tensors at fixed addresses.

In: a `Plan`. Out: `Laid`: `StepInputs` and what goes with them, views of buffers that are allocated once and
overwritten by the next step but one. Keeps the block table of every slot (a plan brings only changes) and
each slot's last sampled token, which stands in for the -1 of a token that is still in flight. `lay` is
numpy on the host, then one copy, in stream order; `settle` is what only the device can do, and is part of
the step that a graph holds. On a CPU the tensors are the host arrays, nothing is copied and nothing left to
settle. Does not run anything.

    host, one of two stagings               device
    [rows | tokens | table changes] --copy--> [rows | tokens | ..]           StepInputs are views of these
                                              table [slots + 1, Bmax] --settle--> block_table [R, B]

A graph's step is padded: to more rows, and to tables of the width of the longest context. Padding rows have
context 0, token 0 and write index -1, and they belong to the spare slot, which is nobody's: what they note
is never read. Graph steps have stagings of their own, as short as their rows, so that little is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed import kernels
from tokenspeed.control import Plan
from tokenspeed.kernels.api.attention import SharedBlocks
from tokenspeed.layers.step import StepInputs

CPU: Final = torch.device("cpu")
CONTEXTS_BOUND: Final = 4  # full contexts' worth of table entries that one step may bring without allocating
_ALIGN_BYTES: Final = 64
_NONE: Final = np.empty(0, np.int32)


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


@dataclass(frozen=True, slots=True)
class Laid:
    """A step's inputs, and the slots its rows belong to."""

    inputs: StepInputs
    slots: torch.Tensor
    """[R] int64"""
    sample_slots: torch.Tensor
    """[S] int64"""
    sample_positions: torch.Tensor
    """[S] int64: the place in its context that the sampled token will take."""


class Batch:
    """The buffers of one executor. `lay` may be called again once the step before the last was retired."""

    def __init__(self, limits: BatchLimits, device: torch.device, *, mirrored: bool | None = None) -> None:
        """`mirrored`: the device has memory of its own; given only to test on a CPU what a GPU does."""
        self.limits = limits
        self._mirrored = device.type != "cpu" if mirrored is None else mirrored
        self._whole = _Stagings(limits, device, mirrored=self._mirrored)
        short = replace(limits, tokens=limits.rows)
        self._short = _Stagings(short, device, mirrored=True) if self._mirrored else self._whole
        self._table_host = np.zeros((limits.slots + 1, limits.blocks_per_row), dtype=np.int32)
        self._table = torch.zeros(self._table_host.shape, dtype=torch.int32, device=device)
        self._rows_table = torch.zeros(limits.rows * limits.blocks_per_row, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(limits.slots + 1, dtype=torch.int64, device=device)
        """[slots + 1] the token each slot sampled last; the spare slot's is that of padding."""
        self._padded: dict[tuple[int, bool], Laid] = {}  # by rows, and whether they share blocks
        self._token_numbers = np.arange(limits.tokens, dtype=np.int64)
        self._settle = kernels.bind("step.settle", kernels.describe(device), blocks=limits.blocks_per_row)

    def lay(self, plan: Plan) -> Laid:
        """The tensors of `plan`."""
        stagings = self._whole
        host = stagings.next_host()
        changes = self._change_table(plan, host)
        rows, tokens, samples = self._fill(host, plan)
        width = -(-int(host.context_lens[:rows].max()) // self.limits.block_tokens)
        self._send(stagings, host, changes)
        laid = self._laid(stagings.device, host, (rows, tokens, samples, plan.decode_rows), width)
        if not self._mirrored:
            self._settle_on_host(host, laid)
        return laid

    def lay_padded(self, plan: Plan, rows: int, *, shared: bool = False) -> Laid:
        """What a graph of `rows` rows reads, filled with a plan that only decodes: each time the same tensors.

        With `shared`, what it reads of the blocks that rows share too.
        """
        host = self._short.next_host()
        changes = self._change_table(plan, host)
        host.pad(self._fill(host, plan)[0], rows, spare_slot=self.limits.slots)
        if shared:
            groups = plan.group_rows, plan.group_sizes, plan.group_blocks
            host.share(rows, *groups, self.limits.block_tokens, self.limits.blocks_per_row)
        self._send(self._short, host, changes)
        return self._laid_padded(host, rows, shared=shared)

    def lay_padding(self, rows: int, *, shared: bool = False) -> Laid:
        """A step of padding alone, such as a graph of `rows` rows is recorded with."""
        host = self._short.next_host()
        host.pad(0, rows, spare_slot=self.limits.slots)
        if shared:
            host.share(rows, _NONE, _NONE, _NONE, self.limits.block_tokens, self.limits.blocks_per_row)
        self._send(self._short, host, 0)
        return self._laid_padded(host, rows, shared=shared)

    def settle(self, laid: Laid) -> None:
        """Put each slot's last token where the plan could only say -1, and gather the rows' tables."""
        if self._mirrored:
            inputs = laid.inputs
            ids = inputs.token_ids[: inputs.decode_rows]
            self._settle(ids, laid.slots, self.last_tokens, self._table, inputs.block_table)

    def blocks_of(self, slot: int, context_tokens: int) -> NDArray[np.int32]:
        """Block ids [n] that hold the first `context_tokens` of a slot."""
        return self._table_host[slot, : -(-context_tokens // self.limits.block_tokens)].copy()

    def _send(self, stagings: _Stagings, host: _Staging, changes: int) -> None:
        """Start the copy to the device, and there change the table."""
        stagings.copy(host, changes=changes > 0)
        if changes:
            tensors = stagings.device.tensors
            self._table.view(-1).index_copy_(
                0, tensors["change_at"][:changes], tensors["change_to"][:changes]
            )

    def _laid_padded(self, host: _Staging, rows: int, *, shared: bool) -> Laid:
        if (rows, shared) not in self._padded:  # made once: a dozen views cost as much as all else
            at, width = self._short.device, self.limits.blocks_per_row
            laid = self._laid(at, host, (rows, rows, rows, rows), width)
            laid.inputs.shared = _shared(at, rows) if shared else None
            self._padded[rows, shared] = laid
        laid = self._padded[rows, shared]
        laid.inputs.row_starts_np = host.row_starts[: rows + 1]
        laid.inputs.context_lens_np = host.context_lens[:rows]
        return laid

    def _laid(self, at: _Staging, host: _Staging, counts: tuple[int, int, int, int], width: int) -> Laid:
        rows, tokens, samples, decode_rows = counts
        tensors = at.tensors
        inputs = StepInputs(
            token_ids=tensors["token_ids"][:tokens],
            positions=tensors["positions"][:tokens],
            write_index=tensors["write_index"][:tokens],
            decode_rows=decode_rows,
            rows=rows,
            row_starts=tensors["row_starts"][: rows + 1],
            context_lens=tensors["context_lens"][:rows],
            block_table=self._rows_table[: rows * width].view(rows, width),
            sample_index=tensors["sample_index"][:samples],
            row_starts_np=host.row_starts[: rows + 1],
            context_lens_np=host.context_lens[:rows],
        )
        return Laid(
            inputs,
            tensors["slots"][:rows],
            tensors["sample_slots"][:samples],
            tensors["sample_positions"][:samples],
        )

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
        staging.sample_positions[: len(ends)] = staging.context_lens[:rows][mask]
        return rows, tokens, len(ends)

    def _change_table(self, plan: Plan, staging: _Staging) -> int:
        """Take the plan's changes into the host's table; how many `staging` brings to the device."""
        if not len(plan.table_slots):
            return 0
        self._table_host[plan.table_slots, plan.table_indexes] = plan.table_blocks
        if not self._mirrored:
            return 0
        at = plan.table_slots.astype(np.int64) * self.limits.blocks_per_row + plan.table_indexes
        at = np.unique(at)  # a later change of an entry wins, which the host's table already knows
        to = self._table_host.reshape(-1)[at]
        if len(at) > len(staging.change_at):  # prefixes found for more requests at once than is foreseen
            where, blocks = (
                torch.from_numpy(array).to(self._table.device, non_blocking=True) for array in (at, to)
            )
            self._table.view(-1).index_copy_(0, where, blocks)
            return 0
        staging.change_at[: len(at)] = at
        staging.change_to[: len(at)] = to
        return len(at)

    def _settle_on_host(self, staging: _Staging, laid: Laid) -> None:
        """`settle` where the device's memory is the host's: torch's launches cost as much as all of `lay`."""
        rows, decode_rows = laid.inputs.rows, laid.inputs.decode_rows
        ids = staging.token_ids[:decode_rows]
        np.copyto(ids, self.last_tokens.numpy()[staging.slots[:decode_rows]], where=ids < 0)
        out = laid.inputs.block_table.numpy()
        np.take(self._table_host[:, : out.shape[1]], staging.slots[:rows], axis=0, out=out)


def _shared(at: _Staging, rows: int) -> SharedBlocks:
    """Views of what `share` has written."""
    tensors, groups = at.tensors, groups_max(rows)
    return SharedBlocks(
        order=tensors["order"][:rows],
        row_starts=tensors["group_starts"][: groups + 1],
        context_lens=tensors["group_lens"][:groups],
        table_at=tensors["group_at"][:groups],
        own_lens=tensors["own_lens"][:rows],
        own_at=tensors["own_at"][:rows],
        place_of=tensors["place_of"][:rows],
    )


def groups_max(rows: int) -> int:
    """Groups that so many rows can be in: a group has two at least."""
    return max(1, rows // 2)


class _Stagings:
    """What one kind of step is staged in: host memory, two of it where a copy may still be reading one."""

    def __init__(self, limits: BatchLimits, device: torch.device, *, mirrored: bool) -> None:
        pinned = device.type == "cuda"
        self._hosts = [_Staging(limits, CPU, pinned=pinned) for _ in range(2 if mirrored else 1)]
        self.device = _Staging(limits, device) if mirrored else self._hosts[0]
        self._turn = 0

    def next_host(self) -> _Staging:
        """The staging to write; the one before the last may be overwritten."""
        self._turn = (self._turn + 1) % len(self._hosts)
        return self._hosts[self._turn]

    def copy(self, host: _Staging, *, changes: bool) -> None:
        """Start the copy to the device."""
        if host is not self.device:
            size = host.memory.numel() if changes else host.changes_begin
            self.device.memory[:size].copy_(host.memory[:size], non_blocking=True)


class _Staging:
    """One block of memory with a step's integers in it: tensors, and numpy views of them on the host."""

    def __init__(self, limits: BatchLimits, device: torch.device, *, pinned: bool = False) -> None:
        changes = limits.tokens // limits.block_tokens + 2 * limits.rows
        if limits.tokens > limits.rows:
            changes += CONTEXTS_BOUND * limits.blocks_per_row
        fields = {
            "token_ids": (limits.tokens, torch.int64),
            "positions": (limits.tokens, torch.int64),
            "write_index": (limits.tokens, torch.int64),
            "slots": (limits.rows, torch.int64),
            "sample_index": (limits.rows, torch.int64),
            "sample_slots": (limits.rows, torch.int64),
            "sample_positions": (limits.rows, torch.int64),
            "row_starts": (limits.rows + 1, torch.int32),
            "context_lens": (limits.rows, torch.int32),
            "group_at": (groups_max(limits.rows), torch.int64),
            "own_at": (limits.rows, torch.int64),
            "order": (limits.rows, torch.int32),
            "group_starts": (groups_max(limits.rows) + 1, torch.int32),
            "group_lens": (groups_max(limits.rows), torch.int32),
            "own_lens": (limits.rows, torch.int32),
            "place_of": (limits.rows, torch.int32),
            "change_at": (changes, torch.int64),
            "change_to": (changes, torch.int32),
        }
        begins: dict[str, int] = {}
        size = 0
        for name, (count, dtype) in fields.items():
            begins[name] = -(-size // _ALIGN_BYTES) * _ALIGN_BYTES
            size = begins[name] + count * dtype.itemsize
        self.changes_begin = begins["change_at"]
        self.memory = torch.zeros(size, dtype=torch.uint8, device=device, pin_memory=pinned)
        self.tensors = {
            name: self.memory[begins[name] : begins[name] + count * dtype.itemsize].view(dtype)
            for name, (count, dtype) in fields.items()
        }
        if device.type != "cpu":
            return
        arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        self.token_ids: NDArray[np.int64] = arrays["token_ids"]
        self.positions: NDArray[np.int64] = arrays["positions"]
        self.write_index: NDArray[np.int64] = arrays["write_index"]
        self.slots: NDArray[np.int64] = arrays["slots"]
        self.sample_index: NDArray[np.int64] = arrays["sample_index"]
        self.sample_slots: NDArray[np.int64] = arrays["sample_slots"]
        self.sample_positions: NDArray[np.int64] = arrays["sample_positions"]
        self.row_starts: NDArray[np.int32] = arrays["row_starts"]
        self.context_lens: NDArray[np.int32] = arrays["context_lens"]
        self.group_at: NDArray[np.int64] = arrays["group_at"]
        self.own_at: NDArray[np.int64] = arrays["own_at"]
        self.order: NDArray[np.int32] = arrays["order"]
        self.group_starts: NDArray[np.int32] = arrays["group_starts"]
        self.group_lens: NDArray[np.int32] = arrays["group_lens"]
        self.own_lens: NDArray[np.int32] = arrays["own_lens"]
        self.place_of: NDArray[np.int32] = arrays["place_of"]
        self.change_at: NDArray[np.int64] = arrays["change_at"]
        self.change_to: NDArray[np.int32] = arrays["change_to"]

    def pad(self, rows: int, rows_padded: int, *, spare_slot: int) -> None:
        """Append rows that do nothing to `rows` rows of one token each."""
        padding = slice(rows, rows_padded)
        for zeroed in (self.token_ids, self.positions, self.context_lens):
            zeroed[padding] = 0
        self.write_index[padding] = -1
        self.slots[padding] = self.sample_slots[padding] = spare_slot
        self.sample_index[padding] = np.arange(rows, rows_padded)
        self.row_starts[rows : rows_padded + 1] = np.arange(rows, rows_padded + 1)

    def share(
        self,
        rows: int,
        members: NDArray[np.int32],
        sizes: NDArray[np.int32],
        blocks: NDArray[np.int32],
        block_tokens: int,
        width: int,
    ) -> None:
        """Say which of `rows` rows, with tables of `width` blocks, begin with the same blocks: `members` are rows,
        group after group, of `sizes` each, `blocks` in common.
        """
        self.own_at[:rows] = np.arange(0, rows * width, width)
        self.own_lens[:rows] = self.context_lens[:rows]
        self.place_of[:rows] = -1
        self.order[:rows] = 0
        self.order[: len(members)] = members
        groups = len(sizes)
        self.group_starts[0] = self.group_at[groups:] = self.group_lens[groups:] = 0
        self.group_starts[1 : groups + 1] = np.cumsum(sizes)
        self.group_starts[groups + 1 :] = len(members)
        if groups:
            self.group_at[:groups] = self.own_at[members[self.group_starts[:groups]]]
            self.group_lens[:groups] = blocks * block_tokens
            common = np.repeat(blocks, sizes)
            self.place_of[members] = np.arange(len(members))
            self.own_at[members] += common
            self.own_lens[members] -= common * block_tokens
