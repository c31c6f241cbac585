# SPDX-License-Identifier: MIT
"""How much of a text could still become a marker: the one question behind every held-back character."""

from __future__ import annotations


def tail_overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that ends `text`."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
