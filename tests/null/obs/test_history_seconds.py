# SPDX-License-Identifier: MIT
"""Seconds: events fall where they happened, silence has no second, memory is bounded."""

from __future__ import annotations

from tokenspeed.obs.history import SECONDS_MAX, History

S = 1_000_000


def test_events_fall_into_their_second_and_the_running_one_is_not_told() -> None:
    history = History()
    history.note_start(5 * S, prompt_tokens=100, cached_tokens=64)
    history.note_tokens(5 * S + 1, 1, 300, first=True)
    history.note_tokens(6 * S - 1, 2, 50, first=False)
    history.note_tokens(8 * S, 1, 70, first=False)
    (early,) = history.last(8 * S, 60)
    assert (early.at_s, early.tokens, early.gaps, early.gap_us_sum) == (5, 3, 2, 50)
    assert (early.first_tokens, early.first_token_us_sum) == (1, 300)
    assert (early.prompt_tokens, early.cached_tokens) == (100, 64)
    assert [second.at_s for second in history.last(9 * S, 60)] == [5, 8]
    assert [second.at_s for second in history.last(9 * S, 2)] == [8]


def test_the_past_is_bounded() -> None:
    history = History()
    for second in range(SECONDS_MAX + 9):
        history.note_tokens(second * S, 1, 1, first=False)
    kept = history.last((SECONDS_MAX + 100) * S, 10**6)
    assert len(kept) == SECONDS_MAX
    assert kept[0].at_s == 9
