# SPDX-License-Identifier: MIT
"""What one simulated user sends: turns of new tokens, the answer expected after each, the wait before.

All content comes from a key (seed, level, repeat, ...), so that a repeated seed sends identical prompts and no
two levels share a prefix. Ids lie inside the part of a vocabulary that holds ordinary tokens.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.base.errors import SetupError

Ids = NDArray[np.int32]
Encode = Callable[[str], Ids]

NONCE_TOKENS: Final = 8
"""Ids at the head of a conversation that make it unlike any other."""
_PIECES: Final = re.compile(r"\s?\w{1,5}|\s+|[^\w\s]")
_WORDS: Final = re.findall(
    r"\w+",
    """
    the of and to in is it for on that with as are by at from this be have or an not we can if all new
    one use file code test line name set get run add call list read time data type path work text make
    find next last first class value error return print while string number object method module import
    open close write key
    """,
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation: history + `ids`, then `answer_tokens` of answer."""

    ids: Ids
    answer_tokens: int
    answer: Ids | None = None
    """The recorded answer; None where the shape only says how long it is."""
    think_us: int = 0
    """The user's or the tool's time between the last answer and this request."""
    texts: tuple[str, ...] | None = None
    """The recorded messages, for chat; None where there are numbers only."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that share a growing history. `later` marks a lone turn whose prefix was sent before (open loop)."""

    id: str
    turns: tuple[Turn, ...]
    arrival_us: int = 0
    later: bool = False

    def within(self, context_tokens: int | None) -> tuple[Conversation, int]:
        """The conversation up to the last turn that fits a context, and how many turns that leaves out."""
        if context_tokens is None:
            return self, 0
        total = 0
        for index, turn in enumerate(self.turns):
            total += len(turn.ids) + turn.answer_tokens
            if total > context_tokens:
                kept = Conversation(self.id, self.turns[:index], self.arrival_us, self.later)
                return kept, len(self.turns) - index
        return self, 0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids that prompts are made of: ordinary tokens, away from both ends, where special ones lie."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 64:
            raise SetupError(f"--vocab {self.size}: a prompt needs at least 64 ids")

    @property
    def low(self) -> int:
        return min(256, self.size // 16)

    @property
    def high(self) -> int:
        return self.size - self.size // 16

    def fold(self, values: NDArray[np.int64]) -> Ids:
        """Map any numbers into the vocabulary; equal ones to equal ids."""
        return (self.low + values % (self.high - self.low)).astype(np.int32)

    def draw(self, count: int, *key: int) -> Ids:
        """`count` ids that are a function of the key alone."""
        return np.random.default_rng(key).integers(self.low, self.high, count, dtype=np.int32)


def hashed_pieces(vocabulary: Vocabulary) -> Encode:
    """An encoder without a tokenizer: pieces of up to five letters, each folded into the vocabulary by its hash.

    It keeps what matters to a cache and to drafting by n-grams: equal text gives equal ids, repeats repeat.
    """

    def encode(text: str) -> Ids:
        hashes = [zlib.crc32(piece.encode()) for piece in _PIECES.findall(text)]
        return vocabulary.fold(np.array(hashes, np.int64))

    return encode


def fitted(ids: Ids, tokens: int) -> Ids:
    """Exactly `tokens` ids: the beginning, or the whole over and over."""
    if not len(ids):
        raise SetupError("a turn of the workload holds no text")
    return np.resize(ids, tokens)


def words(ids: Ids) -> str:
    """A text for chat that is a function of ids: one common English word for each, about one token."""
    return " ".join(_WORDS[index % len(_WORDS)] for index in ids.tolist())
