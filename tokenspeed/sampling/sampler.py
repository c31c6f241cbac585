# SPDX-License-Identifier: MIT
"""Choose the next token of each row of a step.

In: raw logits [S, V] float32, the slot and position of each row; before that, once a request, its
`SamplingParams`. Out: ids [S], which rows were not finite, log probabilities for those that asked. What a row
gets depends on its own logits, request and position only: not on its neighbours, on how its prompt was cut
into steps, or on the device.

Order for a row: repetition penalty, frequency and presence penalties, logit_bias, the mask of stop ids while
fewer than `tokens_min` tokens are out, then the likeliest (temperature 0) or a draw (see `draw`). A request
that replays a recorded answer goes the same way, then says the recorded token of its position. Rows that
are greedy and change nothing cost one argmax. Which path a row takes is known on the host, so nothing waits
for the device. Stop ids and `tokens_max` are judged by the control plane, not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.kernels.ref.chance import uniform
from tokenspeed.kernels.ref.draw import Knobs, draw
from tokenspeed.kernels.settings import NARROW_MAX
from tokenspeed.sampling.history import History
from tokenspeed.sampling.report import Report, report


@dataclass(frozen=True, slots=True)
class Sampled:
    """The choices of one step, still on the device."""

    tokens: Tensor
    """[S] int64; some id in a faulty row."""
    fault: Tensor
    """[S] bool: the row's largest logit is not a finite number, so its token means nothing."""
    report: Report | None


@dataclass(frozen=True, slots=True)
class _Edits:
    """Numbers added to some logits of a slot: ids [n] int64, values [n] float32, on the device."""

    ids: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class _Replay:
    """A recorded answer: ids [n], the first of which takes position `start`."""

    start: int
    ids: NDArray[np.int32]


class Sampler:
    """Sampling state of every slot. A slot is bound anew for each request, before its first row."""

    def __init__(self, *, slots: int, vocab: int, device: torch.device | str) -> None:
        self._vocab = vocab
        self._device = torch.device(device)
        self._history = History(vocab, self._device)
        self._early: list[_Edits | None] = [None] * slots  # while fewer than tokens_min tokens are out
        self._late: list[_Edits | None] = [None] * slots  # afterwards
        self._late_from = np.zeros(slots, np.int64)  # position from which `late` applies
        self._seeds = np.zeros(slots, np.uint64)
        self._knobs = np.zeros((slots, 4), np.float64)  # temperature, top_k (V: off), top_p, min_p
        self._penalties = np.zeros((slots, 3), np.float32)  # presence, frequency, repetition
        self._random = np.zeros(slots, np.bool_)
        self._edited = np.zeros(slots, np.bool_)
        self._penalised = np.zeros(slots, np.bool_)
        self._logprobs = np.full(slots, -1, np.int64)  # -1: not asked
        self._replays: dict[int, _Replay] = {}  # by slot

    def bind(
        self, slot: int, sampling: SamplingParams, prompt: NDArray[np.int32], output: NDArray[np.int32]
    ) -> None:
        """Give `slot` to a request; `prompt` and `output` are int32 [n], the output what it said before."""
        top_k = min(sampling.top_k or self._vocab, self._vocab)
        self._seeds[slot] = sampling.seed
        self._knobs[slot] = sampling.temperature, top_k, sampling.top_p, sampling.min_p
        self._penalties[slot] = sampling.presence, sampling.frequency, sampling.repetition
        self._random[slot] = sampling.temperature > 0
        self._penalised[slot] = bool(sampling.presence or sampling.frequency or sampling.repetition != 1.0)
        self._logprobs[slot] = -1 if sampling.logprobs is None else min(sampling.logprobs, self._vocab)
        bias = sampling.logit_bias or {}
        masked = dict.fromkeys(sampling.stop_ids, -np.inf) if sampling.tokens_min else {}
        self._late[slot] = self._edits(bias)
        self._early[slot] = self._edits({**bias, **masked})
        self._late_from[slot] = len(prompt) + sampling.tokens_min
        self._edited[slot] = bool(bias or masked)
        self._replays.pop(slot, None)
        if sampling.forced:
            self._replays[slot] = _Replay(len(prompt), np.frombuffer(sampling.forced, "<i4"))
        self._history.release(slot)
        if self._penalised[slot]:
            self._history.bind(slot, prompt, output)

    def is_greedy(self, slots: NDArray[np.int32]) -> bool:
        """Say whether every one of these slots wants its likeliest token and nothing beside it."""
        return not (self._random | self._edited | self._penalised | (self._logprobs >= 0))[
            slots
        ].any() and not (self._replays)

    def sample(
        self,
        logits: Tensor,
        slots: NDArray[np.int32],
        positions: NDArray[np.int32],
        likeliest: Tensor | None = None,
    ) -> Sampled:
        """Choose a token for each row, and count it into the history that the slot's penalties look back on.

        logits: [S, V] float32, only read. slots: [S], bound and distinct. positions: [S], the place in its
        context that the chosen token will take. likeliest: [S] int32, what `step.greedy` chose, where that is
        known.
        """
        if likeliest is None:
            best, tokens = logits.max(-1)
            fault = ~best.isfinite()
        else:
            fault, tokens = likeliest < 0, likeliest.clamp_min(0).long()
        busy = np.flatnonzero((self._random | self._edited | self._penalised)[slots])
        if len(busy):
            chosen = self._choose(self._taken(logits, busy), slots[busy], positions[busy])
            tokens = tokens.index_copy(0, self._placed(busy), chosen)
        if self._replays:
            tokens = self._replayed(tokens, slots, positions)
        penalised = np.flatnonzero(self._penalised[slots])
        if len(penalised):
            self._history.note(slots[penalised], self._taken(tokens, penalised))
        asking = np.flatnonzero(self._logprobs[slots] >= 0)
        asked = report(logits, tokens, asking, self._logprobs[slots[asking]]) if len(asking) else None
        return Sampled(tokens, fault, asked)

    def logprobs(self, sampled: Sampled) -> list[TokenLogprob | None] | None:
        """Read a step's log probabilities once its copies are done: an entry a row, None if no row asked."""
        return None if sampled.report is None else sampled.report.read()

    def _replayed(self, tokens: Tensor, slots: NDArray[np.int32], positions: NDArray[np.int32]) -> Tensor:
        """Return tokens [S] with those of rows that replay in place of what was chosen for them."""
        rows: list[int] = []
        recorded: list[int] = []
        for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            replay = self._replays.get(slot)
            if replay is not None and 0 <= position - replay.start < len(replay.ids):
                rows.append(row)
                recorded.append(int(replay.ids[position - replay.start]))
        if not rows:
            return tokens
        return tokens.index_copy(
            0, self._placed(np.array(rows, np.int64)), self._placed(np.array(recorded, np.int64))
        )

    def _choose(self, scores: Tensor, slots: NDArray[np.int32], positions: NDArray[np.int32]) -> Tensor:
        """Choose for rows that are not plain greedy."""
        scores = self._with_edits(self._with_penalties(scores, slots), slots, positions)
        random, top_k, top_p = self._random[slots], self._knobs[slots, 1], self._knobs[slots, 2]
        narrow = random & (top_k <= NARROW_MAX)
        truncated = random & ~narrow & ((top_k < self._vocab) | (top_p < 1))
        sets_k, sets_p = bool((top_k[truncated] < self._vocab).any()), bool((top_p[truncated] < 1).any())
        ways: tuple[tuple[NDArray[np.bool_], Callable[[Tensor, Knobs], Tensor]], ...] = (
            (~random, lambda scores, _: scores.argmax(-1)),
            (narrow, partial(draw, narrow_k=int(top_k[narrow].max(initial=0)))),
            (truncated, partial(draw, top_k=sets_k, top_p=sets_p)),
            (random & ~narrow & ~truncated, draw),
        )
        tokens = torch.empty(len(slots), dtype=torch.int64, device=self._device)
        for members, choose in ways:
            rows = np.flatnonzero(members)
            if len(rows):
                knobs = self._knobs_of(slots[rows], positions[rows])
                tokens[self._placed(rows)] = choose(self._taken(scores, rows), knobs)
        return tokens

    def _knobs_of(self, slots: NDArray[np.int32], positions: NDArray[np.int32]) -> Knobs:
        chance = uniform(self._seeds[slots], positions.astype(np.int64))
        packed = self._placed(np.column_stack((self._knobs[slots], chance)))
        temperature, top_k, top_p, min_p, chance = packed.unbind(-1)
        return Knobs(temperature, top_k.long(), top_p, min_p, chance)

    def _with_penalties(self, scores: Tensor, slots: NDArray[np.int32]) -> Tensor:
        rows = np.flatnonzero(self._penalised[slots])
        if not len(rows):
            return scores
        penalties = self._placed(self._penalties[slots[rows]]).unbind(-1)
        changed = self._history.penalised(self._taken(scores, rows), slots[rows], *penalties)
        return scores.index_copy(0, self._placed(rows), changed)

    def _with_edits(self, scores: Tensor, slots: NDArray[np.int32], positions: NDArray[np.int32]) -> Tensor:
        early = positions < self._late_from[slots]
        edits = [
            (self._early if first else self._late)[slot] for slot, first in zip(slots, early, strict=True)
        ]
        found = [(row, edit) for row, edit in enumerate(edits) if edit is not None]
        if not found:
            return scores
        rows = np.repeat([row for row, _ in found], [len(edit.ids) for _, edit in found])
        ids, values = (torch.cat(parts) for parts in zip(*((e.ids, e.values) for _, e in found), strict=True))
        return scores.index_put((self._placed(rows), ids), values, accumulate=True)

    def _edits(self, added: dict[int, float]) -> _Edits | None:
        if not added:
            return None
        ids = np.fromiter(added.keys(), np.int64, len(added))
        return _Edits(self._placed(ids), self._placed(np.fromiter(added.values(), np.float32, len(added))))

    def _taken(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Return some rows, without a copy where they are all of them."""
        return tensor if len(rows) == len(tensor) else tensor[self._placed(rows)]

    def _placed(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
