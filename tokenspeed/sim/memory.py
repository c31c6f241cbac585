# SPDX-License-Identifier: MIT
"""The simulated KV arena: what was written where, as fingerprints of histories.

    block 7   head  f0 | slots  f1 f2 f3 .. | chained 3
                        f1 = fold(f0, token at offset 0), f2 = fold(f1, token at offset 1), ...

A slot holds the fingerprint of the whole history up to its token, as a real KV entry depends on all tokens
before it. `chained` counts the leading slots that follow from one another; slots behind them are of some
other history, or were never written. Reading a span therefore costs one comparison, and a block that was
swapped, overwritten, half filled or filled for another tenant cannot be read as if it were right.

Does not know requests, tables or ownership: that is the executor's part.
"""

from __future__ import annotations

from tokenspeed.sim.violation import ViolationError

UNWRITTEN = -1
SPOILT = -2


class Memory:
    """`blocks` spans of `block_tokens` slots each, nothing written yet."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._heads = [UNWRITTEN] * blocks
        self._slots = [[UNWRITTEN] * block_tokens for _ in range(blocks)]
        self._chained = [0] * blocks

    def read(self, block: int, count: int, fingerprint: int) -> int:
        """The fingerprint after the first `count` slots, which must continue the history `fingerprint`."""
        if self._chained[block] < count:
            raise ViolationError(
                "memory", f"reads {count} slots of block {block}, of which {self._chained[block]} are whole"
            )
        if self._heads[block] != fingerprint:
            raise ViolationError(
                "memory", f"block {block} continues another history than the block before it"
            )
        return self._slots[block][count - 1]

    def content(self, block: int) -> tuple[int, ...]:
        """All of a block: its head, its slots, and how many of them are chained."""
        return (self._heads[block], *self._slots[block], self._chained[block])

    def fill(self, block: int, content: tuple[int, ...]) -> None:
        """Make a block what another was."""
        self._heads[block], *self._slots[block], self._chained[block] = content

    def spoil(self, block: int) -> None:
        """What the block holds can be anything: nothing of it can be read."""
        self._heads[block], self._chained[block] = SPOILT, 0

    def is_spoilt(self, block: int) -> bool:
        """Nothing was written to it since."""
        return self._heads[block] == SPOILT and self._chained[block] == 0

    def write(self, block: int, offset: int, history: list[int]) -> None:
        """Fill slots from `offset`; `history` holds the fingerprint before them and one after each."""
        slots = self._slots[block]
        if offset == 0:
            self._heads[block] = history[0]
        elif self._chained[block] < offset or slots[offset - 1] != history[0]:
            raise ViolationError(
                "memory", f"block {block}: offset {offset} does not follow what lies before it"
            )
        count = len(history) - 1
        slots[offset : offset + count] = history[1:]
        self._chained[block] = offset + count
