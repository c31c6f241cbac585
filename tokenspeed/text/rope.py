# SPDX-License-Identifier: MIT
"""Bytes in pieces: to take off the end and add to it costs what is taken and added, not what is there.

Immutable; pieces are shared between ropes that grew from each other.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

_PIECES_MAX: Final = 512  # then they are joined, which costs their whole length, rarely


@dataclass(frozen=True, slots=True)
class Rope:
    """`ends[i]` is where piece i ends in the whole."""

    pieces: tuple[bytes, ...] = ()
    ends: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __bytes__(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    def head(self, length: int) -> Rope:
        """The first `length` bytes."""
        at = bisect_left(self.ends, length)
        begin = self.ends[at - 1] if at else 0
        head = Rope(self.pieces[:at], self.ends[:at])
        return head.plus(self.pieces[at][: length - begin]) if length > begin else head

    def tail(self, begin: int) -> bytes:
        """The bytes from `begin` on."""
        at = len(self.pieces)
        while at and (self.ends[at - 1]) > begin:
            at -= 1
        skipped = begin - (self.ends[at - 1] if at else 0)
        if at == len(self.pieces):
            return b""
        return b"".join((memoryview(self.pieces[at])[skipped:], *self.pieces[at + 1 :]))

    def plus(self, piece: bytes) -> Rope:
        """This and then `piece`."""
        if not piece:
            return self
        if len(self.pieces) >= _PIECES_MAX:
            whole = bytes(self) + piece
            return Rope((whole,), (len(whole),))
        return Rope((*self.pieces, piece), (*self.ends, len(self) + len(piece)))

    def common(self, other: bytes) -> int:
        """How many first bytes are those of `other`."""
        begin = 0
        for piece, end in zip(self.pieces, self.ends, strict=True):
            if not other.startswith(piece, begin):
                return begin + common_bytes(piece, memoryview(other)[begin:])
            begin = end
        return begin


def common_bytes(one: bytes | memoryview, other: bytes | memoryview) -> int:
    """How many first bytes are equal."""
    one, other = memoryview(one), memoryview(other)
    low, high = 0, min(len(one), len(other))
    while low < high:  # the first `low` bytes are equal
        middle = (low + high + 1) // 2
        if bytes(one[low:middle]) == bytes(other[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
