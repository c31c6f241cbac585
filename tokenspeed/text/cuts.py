# SPDX-License-Identifier: MIT
"""Where a text may be cut so that its parts, encoded apart, give the ids of the whole.

A tokenizer looks for its added tokens before anything else (leftmost first, the longest of those), and what lies
between two of them is normalised, split and merged for itself. So the place before an added token is an exact
boundary, if no other added token can overlap it there, and it does not swallow the spaces beside it. `Cuts` are
the tokens for which the vocabulary itself shows both; a tokenizer that pads or truncates has none.

The k-th such token of a text is the k-th such id of its ids: that gives every cut its place in both. A text that
begins with its cut token is encoded as it is in the middle of a longer one, whatever a tokenizer does to the
very first characters it sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Protocol

import numpy as np

NONE: Final = np.empty(0, np.int64)


class AddedToken(Protocol):
    """What is read of `tokenizers.AddedToken`."""

    @property
    def content(self) -> str: ...

    @property
    def normalized(self) -> bool: ...

    @property
    def lstrip(self) -> bool: ...

    @property
    def rstrip(self) -> bool: ...

    @property
    def single_word(self) -> bool: ...


class Cuts:
    """The cut tokens of one vocabulary. Immutable."""

    def __init__(self, added: Mapping[int, AddedToken], vocab_size: int) -> None:
        self.tokens = _isolated(added)
        """Spelling by id."""
        self._is_cut = np.zeros(vocab_size, np.bool_)
        self._is_cut[list(self.tokens)] = True
        self._pattern = lru_cache(maxsize=64)(self._compile)

    def locate(self, text: bytes, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(where each cut token of `text` begins, where it ends, its index in `ids`); bytes of UTF-8, ids [n].

        Nothing where text and ids do not tell the same story.
        """
        indexes = np.flatnonzero(self._is_cut[ids])
        if not len(indexes):
            return NONE, NONE, NONE
        # Only tokens that occur are looked for: an alternation of hundreds is slow at every "<".
        matches = list(self._pattern(frozenset(ids[indexes].tolist())).finditer(text))
        if len(matches) != len(indexes):
            return NONE, NONE, NONE
        starts = np.array([match.start() for match in matches], np.int64)
        ends = np.array([match.end() for match in matches], np.int64)
        return starts, ends, indexes.astype(np.int64)

    def _compile(self, ids: frozenset[int]) -> re.Pattern[bytes]:
        return re.compile(b"|".join(re.escape(self.tokens[token_id].encode()) for token_id in sorted(ids)))


def _isolated(added: Mapping[int, AddedToken]) -> dict[int, str]:
    """The added tokens that nothing can overlap and that leave their neighbours alone."""
    spellings = {token.content for token in added.values() if token.content}
    prefixes = {text[:length] for text in spellings for length in range(1, len(text))}
    suffixes = {text[-length:] for text in spellings for length in range(1, len(text))}
    return {
        token_id: token.content
        for token_id, token in added.items()
        if _is_plain(token)
        and not any(token.content[start:] in prefixes for start in range(len(token.content)))
        and not any(token.content[: start + 1] in suffixes for start in range(len(token.content)))
        and not any(token.content in other and token.content != other for other in spellings)
    }


def _is_plain(token: AddedToken) -> bool:
    """Matched in the raw text, and only itself: neither words nor spaces beside it matter."""
    if not token.content or token.normalized or token.lstrip or token.rstrip or token.single_word:
        return False
    edges = token.content[0] + token.content[-1]
    return not any(edge.isspace() or edge.isalnum() or edge == "_" for edge in edges)
