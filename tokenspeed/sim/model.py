# SPDX-License-Identifier: MIT
"""The simulated model: a pure function from a token history to the next token.

A history is folded into a *fingerprint*, one int below 2^61-1: `root(salt)` is the empty history of a
tenant, `fold` appends tokens. The next token is drawn from the fingerprint and the request's seed. Two
different histories have the same fingerprint, or the same next token, with a probability of about one in a
million, so any confusion about what a row has really read shows in what it says.

The executor folds what lies in the blocks a table names; the oracle folds what the request alone would have
read. Neither knows the other. Tokens are 0 .. VOCAB-1; prompts draw from all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Final

VOCAB: Final = 1 << 20
PRIME: Final = (1 << 61) - 1
_FACTOR: Final = 0x1B9F4A7C15D3E86B % PRIME
_SAMPLE: Final = 0x0A0761D6478BD643 % PRIME


def root(salt: bytes) -> int:
    """The fingerprint of no tokens at all, for one tenant."""
    return (int.from_bytes(salt, "little") * _SAMPLE + len(salt) + 1) % PRIME


def fold(fingerprint: int, tokens: Iterable[int]) -> list[int]:
    """Fingerprints before the first token and after each one: n + 1 of them for n tokens."""
    return list(accumulate(tokens, _append, initial=fingerprint))


def sample(fingerprint: int, seed: int) -> int:
    """The token that follows the history `fingerprint` for a request with this seed."""
    return ((fingerprint ^ seed) * _SAMPLE % PRIME >> 20) % VOCAB


def complete(fingerprint: int, seed: int, count: int) -> list[int]:
    """The `count` tokens that follow, each fed back."""
    tokens: list[int] = []
    for _ in range(count):
        token = sample(fingerprint, seed)
        tokens.append(token)
        fingerprint = _append(fingerprint, token)
    return tokens


def _append(fingerprint: int, token: int) -> int:
    return (fingerprint * _FACTOR + token + 1) % PRIME
