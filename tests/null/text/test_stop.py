# SPDX-License-Identifier: MIT
"""Stop strings: found across every boundary, holding back no more than could still match."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.text.stop import StopScanner

TEXT = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


def scan(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    scanner = StopScanner(stops, include=include)
    out = "".join(scanner.feed(piece) for piece in pieces)
    return out + scanner.flush(), scanner.hit


@given(TEXT, STOPS, st.booleans())
def test_scanner_agrees_with_a_search_of_the_whole_text(text, stops, include):
    ends = min(((text.find(s) + len(s), text.find(s), s) for s in stops if s in text), default=None)
    if ends is None:
        expected = (text, None)
    else:
        end, at, stop = ends
        expected = (text[: end if include else at], stop)
    assert scan([text], stops, include) == expected
    assert scan(list(text), stops, include) == expected


@given(TEXT, STOPS)
def test_scanner_holds_back_only_what_could_begin_a_stop(text, stops):
    scanner = StopScanner(stops)
    seen = ""
    for character in text:
        seen += scanner.feed(character)
        if scanner.hit is not None:
            return
    held = text[len(seen) :]
    assert held == "" or any(stop.startswith(held) for stop in stops)
    assert not any(stop.startswith(text[len(seen) - n :]) for stop in stops for n in range(1, len(seen) + 1))


def test_scanner_swallows_everything_after_a_hit():
    scanner = StopScanner(["b"])
    assert (scanner.feed("ab"), scanner.feed("c"), scanner.flush()) == ("a", "", "")


def test_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopScanner([""])
