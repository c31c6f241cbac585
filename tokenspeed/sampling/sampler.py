# SPDX-License-Identifier: MIT
"""Choose the next token of each row of a step.

In: once a request, its `SamplingParams`; each step raw logits [S, V] float32, the likeliest token of each row
(`step.greedy`), and the slots and positions of the rows, on the host and on the device. Out: `chosen`,
changed; each slot's last token; log probabilities for those that asked. What a row gets depends on its own
logits, request and position only: not on its neighbours, on how its prompt was cut into steps, or on the
device.

Order for a row: repetition penalty, frequency and presence penalties, logit_bias, the mask of stop ids while
fewer than `tokens_min` tokens are out (`sampling.adjust`), the mask of its grammar where it has one
(`sampling.mask`), then the likeliest (temperature 0) or a draw
(`sampling.draw`). A request that replays a recorded answer goes the same way, then says the recorded token of
its position (`sampling.note`). What a request wants lies on the device, by slot; the host knows which of the
three a step needs, so nothing waits and a step of greedy rows needs none. Stop ids and `tokens_max` are judged
by the control plane, not here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed import kernels
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.kernels.settings import COLUMNS, EDITS_UNUSED, Column
from tokenspeed.sampling.history import History
from tokenspeed.sampling.report import Report, report


class _Need(enum.IntFlag):
    """What a slot's rows need beside their likeliest token."""

    ADJUST = 1
    DRAW = 2
    TOP_K = 4
    TOP_P = 8
    NOTE = 16
    """Its last token is not (only) what `step.greedy` noted."""
    REPORT = 32


@dataclass(frozen=True, slots=True)
class Rows:
    """The sampled rows of a step. The `_np` fields are what the host knows of them."""

    slots: Tensor
    """[S] int64, distinct and bound."""
    positions: Tensor
    """[S] int64: the place in its context that the token will take."""
    slots_np: NDArray[np.int32]


class Masks(Protocol):
    """Which tokens some of the sampled rows may say, as `exec.protocol.RowMasks`."""

    @property
    def rows(self) -> NDArray[np.int64]: ...

    @property
    def bits(self) -> NDArray[np.int32]: ...


class Sampler:
    """Sampling state of every slot. A slot is bound anew for each request, before its first row."""

    def __init__(self, *, slots: int, vocab: int, device: torch.device | str) -> None:
        self._vocab = vocab
        self._device = torch.device(device)
        about = kernels.describe(self._device)
        self._adjust = kernels.bind("sampling.adjust", about, vocab=vocab)
        self._draw = kernels.bind("sampling.draw", about, vocab=vocab)
        self._mask = kernels.bind("sampling.mask", about, vocab=vocab)
        self._likeliest = kernels.bind("step.greedy", about, dtype=torch.float32, vocab=vocab)
        self._note = kernels.bind("sampling.note", about, vocab=vocab)
        self._history = History(vocab, self._device)
        pinned = self._device.type == "cuda"
        self._staged = torch.zeros(slots + 1, COLUMNS, dtype=torch.float64, pin_memory=pinned)
        self._staged[:, [Column.LINE, Column.FORCED_FROM]] = -1
        self._settings = self._staged if self._device.type == "cpu" else self._staged.to(self._device)
        self._edit_ids = self._table(torch.int32, slots + 1, 0)
        self._edit_values = self._table(torch.float32, slots + 1, 2, 0)
        self._forced = self._table(torch.int32, slots + 1, 0)
        self._bits: tuple[Tensor, Tensor] | None = None  # of masks: on the host, and on the device
        self._needs = np.zeros(slots, np.int64)
        self._logprobs = np.full(slots, -1, np.int64)  # -1: not asked

    def bind(
        self, slot: int, sampling: SamplingParams, prompt: NDArray[np.int32], output: NDArray[np.int32]
    ) -> None:
        """Give `slot` to a request; `prompt` and `output` are int32 [n], the output what it said before."""
        top_k = min(sampling.top_k or self._vocab, self._vocab)
        penalised = bool(sampling.presence or sampling.frequency or sampling.repetition != 1.0)
        edited = self._bind_edits(slot, sampling)
        self._history.release(slot)
        row = self._staged[slot].numpy()
        row[Column.TEMPERATURE], row[Column.TOP_K] = sampling.temperature, top_k
        row[Column.TOP_P], row[Column.MIN_P] = sampling.top_p, sampling.min_p
        row[Column.PRESENCE], row[Column.FREQUENCY] = sampling.presence, sampling.frequency
        row[Column.REPETITION] = sampling.repetition
        row.view(np.int64)[Column.SEED] = np.uint64(sampling.seed).astype(np.int64)
        row[Column.LINE] = self._history.bind(slot, prompt, output) if penalised else -1
        row[Column.EDITED] = edited
        row[Column.LATE_FROM] = len(prompt) + sampling.tokens_min
        row[Column.FORCED_FROM] = len(prompt) if self._bind_forced(slot, sampling.forced) else -1
        if self._settings is not self._staged:
            self._settings[slot].copy_(self._staged[slot], non_blocking=True)
        random, adjusted = sampling.temperature > 0, penalised or edited
        self._logprobs[slot] = -1 if sampling.logprobs is None else min(sampling.logprobs, self._vocab)
        self._needs[slot] = (
            adjusted * _Need.ADJUST
            | (random or adjusted) * _Need.DRAW
            | (random and top_k < self._vocab) * _Need.TOP_K
            | (random and sampling.top_p < 1) * _Need.TOP_P
            | (random or adjusted or bool(sampling.forced)) * _Need.NOTE
            | (sampling.logprobs is not None) * _Need.REPORT
        )

    def refines(self, slots: NDArray[np.int32]) -> bool:
        """Say whether any row of these slots wants more than its likeliest token."""
        return bool(self._needs[slots].any())

    def refine(
        self, logits: Tensor, chosen: Tensor, last_tokens: Tensor, rows: Rows, masks: Masks | None = None
    ) -> Report | None:
        """Choose anew for the rows whose likeliest token will not do; log probabilities where any row asked.

        logits: [S, V] float32, only read. chosen: [S] int32, each row's likeliest token, negative where the
        row is at fault, which stays; changed. last_tokens: [M] int64 by slot, changed.
        """
        needs = self._needs[rows.slots_np]
        need = _Need(int(np.bitwise_or.reduce(needs, initial=0)))
        at = (rows.slots, rows.positions, self._settings)
        scores = logits
        if need & _Need.ADJUST:
            history = (self._history.counts, self._history.in_prompt)
            scores = self._adjust(logits, *at, *history, self._edit_ids, self._edit_values)
        if masks is not None:
            scores = self._mask(scores, *self._place_masks(masks, len(scores)))
            self._likeliest(scores, rows.slots, last_tokens, chosen)
        if need & _Need.DRAW:
            sets_k, sets_p = bool(need & _Need.TOP_K), bool(need & _Need.TOP_P)
            self._draw(scores, *at, chosen, top_k=sets_k, top_p=sets_p)
        if need & _Need.NOTE:
            self._note(chosen, *at, self._forced, self._history.counts, last_tokens)
        if not need & _Need.REPORT:
            return None
        asking = np.flatnonzero(needs & _Need.REPORT)
        return report(logits, chosen, asking, self._logprobs[rows.slots_np[asking]])

    def rehearse(self, rows_max: int = 1) -> None:
        """Run what steps may need once, for rows that ask for nothing, so that it is compiled.

        Kernels may be made for a number of rows, up to the next power of two: each is gone through.
        """
        for rows in (1 << power for power in range((rows_max - 1).bit_length() + 1)):
            slots = torch.full((rows,), len(self._needs), dtype=torch.int64, device=self._device)
            at = (slots, torch.zeros_like(slots), self._settings)
            history = (self._history.counts, self._history.in_prompt)
            logits, chosen = self._table(torch.float32, rows, self._vocab), self._table(torch.int32, rows)
            self._adjust(logits, *at, *history, self._edit_ids, self._edit_values)
            self._mask(
                logits, torch.full_like(chosen, -1), self._table(torch.int32, 1, -(-self._vocab // 32))
            )
            self._draw(logits, *at, chosen)
            last_tokens = self._table(torch.int64, len(self._needs) + 1)
            self._note(chosen, *at, self._forced, self._history.counts, last_tokens)

    def _place_masks(self, masks: Masks, rows: int) -> tuple[Tensor, Tensor]:
        """Lines of rows [S] and their bits [G, W] on the device.

        What they are staged in is free again: the copy of the last masks was done before their step was read.
        """
        lines = np.full(rows, -1, np.int32)
        lines[masks.rows] = np.arange(len(masks.rows))
        if self._device.type == "cpu":
            return torch.from_numpy(lines), torch.from_numpy(masks.bits)
        words = -(-self._vocab // 32)
        if self._bits is None:  # a request with a grammar has come for the first time
            slots = len(self._needs)
            pinned = torch.zeros(slots, words + 1, dtype=torch.int32, pin_memory=self._device.type == "cuda")
            self._bits = pinned, self._table(torch.int32, slots * (words + 1))
        staged, placed = self._bits
        size = len(masks.rows) * words
        flat = staged.view(-1)
        flat[:rows].copy_(torch.from_numpy(lines))
        flat[rows : rows + size].copy_(torch.from_numpy(masks.bits).reshape(-1))
        placed[: rows + size].copy_(flat[: rows + size], non_blocking=True)
        return placed[:rows], placed[rows : rows + size].view(-1, words)

    def _bind_edits(self, slot: int, sampling: SamplingParams) -> bool:
        """Place what is added to some logits of a slot; whether anything is."""
        bias = sampling.logit_bias or {}
        masked = sampling.stop_ids if sampling.tokens_min else ()
        late = {**dict.fromkeys(masked, 0.0), **bias}
        if not late:
            return False
        ids = np.full(self._width(self._edit_ids, len(late)), EDITS_UNUSED, np.int32)
        values = np.zeros((2, len(ids)), np.float32)
        ids[: len(late)] = list(late)
        values[:, : len(late)] = list(late.values())
        values[0, : len(late)][np.isin(ids[: len(late)], masked)] = -np.inf
        self._edit_ids = self._widened(self._edit_ids, len(ids), EDITS_UNUSED)
        self._edit_values = self._widened(self._edit_values, len(ids), 0)
        self._place(self._edit_ids[slot], ids)
        self._place(self._edit_values[slot], values)
        return True

    def _bind_forced(self, slot: int, forced: bytes | None) -> bool:
        """Place a recorded answer; whether there is one."""
        if not forced:
            return False
        recorded = np.frombuffer(forced, "<i4")
        ids = np.full(self._width(self._forced, len(recorded)), -1, np.int32)
        ids[: len(recorded)] = recorded
        self._forced = self._widened(self._forced, len(ids), -1)
        self._place(self._forced[slot], ids)
        return True

    def _table(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    @staticmethod
    def _width(table: Tensor, wanted: int) -> int:
        """How wide a table becomes to hold `wanted`: it grows by doubling, so that it grows seldom."""
        width = table.shape[-1]
        return width if wanted <= width else 1 << (wanted - 1).bit_length()

    @staticmethod
    def _widened(table: Tensor, width: int, fill: float) -> Tensor:
        more = width - table.shape[-1]
        return torch.nn.functional.pad(table, (0, more), value=fill) if more else table

    def _place(self, where: Tensor, values: NDArray[np.generic]) -> None:
        staged = torch.from_numpy(values)
        if self._device.type == "cuda":
            staged = staged.pin_memory()
        where.copy_(staged, non_blocking=True)
