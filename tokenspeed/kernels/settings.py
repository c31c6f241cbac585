# SPDX-License-Identifier: MIT
"""A request's sampling as one row of numbers, kept on the device by slot: what the ops `sampling.*` read.

A row is `COLUMNS` float64 numbers, one per member of `Column`; the seed's 64 bits stand in theirs as they are.
Written when a slot is bound (`tokenspeed.sampling`), read every step; the last row of a table is the spare slot
of padding and asks for nothing.
"""

from __future__ import annotations

import enum
from typing import Final


class Column(enum.IntEnum):
    """Where a number stands in its row."""

    TEMPERATURE = 0
    """0: take the likeliest."""
    TOP_K = 1
    """V where off."""
    TOP_P = 2
    MIN_P = 3
    PRESENCE = 4
    FREQUENCY = 5
    REPETITION = 6
    SEED = 7
    """An int64 in the place of a float64."""
    LINE = 8
    """Of the history that penalties look back on; -1 without penalties."""
    EDITED = 9
    """1 where numbers are added to some logits, else 0."""
    LATE_FROM = 10
    """From this position on stop ids are not masked any more."""
    FORCED_FROM = 11
    """The position that the first recorded token takes; -1 where nothing is recorded."""


COLUMNS: Final = 12
NARROW_MAX: Final = 256
"""Up to this top_k exactly k tokens are kept, lower ids first among equals; above, equals are kept together."""
EDITS_UNUSED: Final = -1
"""The id of an edit that is none."""
