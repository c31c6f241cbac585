# SPDX-License-Identifier: MIT
"""The grammars of open requests: compiled beside the loop, walked by their answers, made into masks of a step.

In: constraints as requests bring them, the tokens that commits emit, plans. Out: which requests have their
grammar now, the masks of a plan's rows, and who cannot go on. A request waits for its grammar outside the
scheduler and holds up nobody. With overlap a step's masks depend on tokens of the step before it, so they are
asked for when that one is read and this one's model runs (`Loop`); rows without a grammar have no mask.

A stop id ends a constrained answer where its grammar may end and `tokens_min` tokens are out, and nowhere else;
where only the end may follow, it may come early. Nothing here raises for what a grammar does.

One mask follows the last token emitted. A draft of several tokens needs a mask for each: a walk can be copied
and led along the draft, and `RowMasks` takes several rows of one request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.base.constraint import Constraint
from tokenspeed.base.errors import RequestError, TokenSpeedError
from tokenspeed.base.log import get_logger
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Plan
from tokenspeed.exec.protocol import RowMasks
from tokenspeed.text.grammar.matcher import Compiler, Masks, Vocabulary, Walk

_log = get_logger("engine")
DEAD: Final = (
    "the grammar of this answer allows no token where it stands; this request was ended, others go on"
)
COSTLY: Final = "the grammar of this answer became too costly to follow; this request was ended, others go on"


@dataclass(slots=True)
class _Answer:
    """An answer under way."""

    walk: Walk
    stop_ids: NDArray[np.int64]
    tokens_min: int
    tokens: int = 0  # emitted so far


@dataclass(frozen=True, slots=True)
class Asked:
    """What a plan needs of its grammars."""

    masks: RowMasks | None
    ended: tuple[int, ...] = ()
    """Requests whose answer is whole, though no id of theirs could say so."""
    failed: tuple[tuple[int, str], ...] = ()
    """Requests that cannot go on, and why, in words for the caller."""


class Constraints:
    """Belongs to one loop; only compiling happens elsewhere, and `wake` is called from there when it is done."""

    def __init__(
        self, vocabulary: Future[Vocabulary], *, vocab: int, threads: int, wake: Callable[[], None]
    ) -> None:
        self._vocabulary = vocabulary
        self._vocab = vocab
        self._threads = threads
        self._wake = wake
        self._compiler = Compiler(vocabulary)
        self._compiling: dict[int, Future[Walk]] = {}
        self._answers: dict[int, _Answer] = {}
        self._masks: Masks | None = None
        self._buffer = np.zeros((0, 0), np.int32)

    @property
    def waiting(self) -> bool:
        """Some request waits for its grammar."""
        return bool(self._compiling)

    def begin(self, request_id: int, constraint: Constraint) -> None:
        """Have a request's grammar compiled; `ready` says when that is done."""
        compiling = self._compiler.start(constraint)
        self._compiling[request_id] = compiling
        compiling.add_done_callback(lambda _: self._wake())

    def ready(self) -> Iterator[tuple[int, Walk | None]]:
        """Requests whose grammar is there since last asked, in the order of arrival; None where it is refused."""
        done = [request_id for request_id, compiling in self._compiling.items() if compiling.done()]
        for request_id in done:
            compiling = self._compiling.pop(request_id)
            try:
                yield request_id, compiling.result()
            except (RequestError, TokenSpeedError) as error:
                _log.warning("request %d refused: %s", request_id, error)
                yield request_id, None

    def open(self, request_id: int, walk: Walk, sampling: SamplingParams) -> None:
        """An accepted request's answer begins."""
        stop_ids = np.array(sampling.stop_ids, np.int64)
        self._answers[request_id] = _Answer(walk, stop_ids, sampling.tokens_min)

    def take(self, request_id: int, token: int) -> bool:
        """An answer goes on by a token; False if its grammar does not have it."""
        answer = self._answers.get(request_id)
        if answer is None:
            return True
        answer.tokens += 1
        return answer.walk.take(token)

    def close(self, request_id: int) -> bool:
        """Forget a request, wherever it is; whether it was still waiting."""
        self._answers.pop(request_id, None)
        waiting = self._compiling.pop(request_id, None)
        if waiting is not None:
            waiting.cancel()
        return waiting is not None

    def holds(self, plan: Plan) -> bool:
        """Whether a row of the plan has a grammar."""
        return bool(self._answers) and not self._answers.keys().isdisjoint(plan.request_ids.tolist())

    def ask(self, plan: Plan) -> Asked:
        """The masks of a plan's sampled rows, as their answers stand now."""
        sampled: list[int] = plan.request_ids[plan.sampled.view(np.bool_)].tolist()
        mine = [(row, i, self._answers[i]) for row, i in enumerate(sampled) if i in self._answers]
        if not mine:
            return Asked(None)
        filled = self._filled([answer.walk for _, _, answer in mine])
        rows: list[int] = []
        kept: list[NDArray[np.int32]] = []
        ended: list[int] = []
        failed: list[tuple[int, str]] = []
        for (row, request_id, answer), bits in zip(mine, filled, strict=True):
            if answer.walk.error:
                _log.warning("request %d ends: %s", request_id, answer.walk.error)
                failed.append((request_id, DEAD if answer.walk.stuck else COSTLY))
                continue
            may_end, goes_on = self._settle(answer, bits)
            if goes_on or (may_end and len(answer.stop_ids)):
                rows.append(row)
                kept.append(bits)
            elif may_end:
                ended.append(request_id)
            else:
                failed.append((request_id, DEAD))
        masks = self._row_masks(rows, kept) if rows else None
        return Asked(masks, tuple(ended), tuple(failed))

    def _filled(self, walks: list[Walk]) -> NDArray[np.int32]:
        """Masks of the vocabulary [n, words], in memory that is used again."""
        vocabulary = self._vocabulary.result()
        if self._masks is None:
            self._masks = Masks(vocabulary, self._threads)
        if len(self._buffer) < len(walks):
            self._buffer = np.zeros((1 << (len(walks) - 1).bit_length(), vocabulary.words), np.int32)
        filled = self._buffer[: len(walks)]
        self._masks.fill(walks, filled)
        return filled

    def _settle(self, answer: _Answer, bits: NDArray[np.int32]) -> tuple[bool, bool]:
        """Give stop ids their say in a mask; (whether the answer may end here, whether it may go on)."""
        size = self._vocabulary.result().size
        may_end = bool((bits[size >> 5] >> (size & 31)) & 1)
        clear(bits, np.array([size]))
        clear_from(bits, self._vocab)
        clear(bits, answer.stop_ids)
        goes_on = bool(bits.any())
        if may_end and (answer.tokens >= answer.tokens_min or not goes_on):
            within = answer.stop_ids[answer.stop_ids < min(self._vocab, 32 * len(bits))]
            np.bitwise_or.at(bits.view(np.uint32), within >> 5, _bit(within))
        return may_end, goes_on

    def _row_masks(self, rows: list[int], kept: list[NDArray[np.int32]]) -> RowMasks:
        """Masks of the model's width, which may be more or less than the tokenizer's."""
        words = -(-self._vocab // 32)
        bits = np.zeros((len(rows), words), np.int32)
        for line, own in zip(bits, kept, strict=True):
            line[: min(words, len(own))] = own[:words]
        return RowMasks(np.array(rows, np.int64), bits)


def clear(bits: NDArray[np.int32], ids: NDArray[np.int64]) -> None:
    """Clear the bits of these ids, as far as there are such."""
    within = ids[ids < 32 * len(bits)]
    np.bitwise_and.at(bits.view(np.uint32), within >> 5, ~_bit(within))


def clear_from(bits: NDArray[np.int32], first: int) -> None:
    """Clear all bits from this id on."""
    word = first >> 5
    if word < len(bits):
        bits.view(np.uint32)[word] &= np.uint32((1 << (first & 31)) - 1)
        bits[word + 1 :] = 0


def _bit(ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    return np.left_shift(np.uint32(1), (ids & 31).astype(np.uint32))
