# SPDX-License-Identifier: MIT
"""A rope is the bytes it stands for, however it grew."""

from __future__ import annotations

import os
import random

from tokenspeed.text.rope import Rope, common_bytes


def test_rope_equals_its_bytes():
    dice = random.Random(3)
    rope, plain = Rope(), b""
    for _ in range(2000):
        length = dice.randrange(len(plain) + 1)
        if dice.random() < 0.4:
            length = max(length, len(plain) - 9)
            rope, plain = rope.head(length), plain[:length]
        else:
            piece = os.urandom(dice.randrange(6))
            rope, plain = rope.plus(piece), plain + piece
        at = dice.randrange(len(plain) + 1)
        assert (bytes(rope), len(rope), rope.tail(at)) == (plain, len(plain), plain[at:])
        other = plain[:at] + os.urandom(2)
        same = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
        wanted = min(len(plain), len(other)) if same is None else same
        assert rope.common(other) == common_bytes(plain, other) == wanted


def test_edges():
    assert bytes(Rope().head(0)) == Rope().tail(0) == b""
    assert Rope().plus(b"") == Rope()
    assert Rope().plus(b"ab").plus(b"c").tail(3) == b""
    assert Rope().plus(b"ab").common(b"a") == 1
