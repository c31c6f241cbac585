# SPDX-License-Identifier: MIT
"""Timelines of requests: exact sums, bounded memory, no name a client gave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.obs.requests import ENDED_MAX, TOKEN_TIMES_MAX, RecentRequests, RequestTimeline

EVENTS = st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 4)), min_size=1, max_size=40)


def _timeline(received_us: int = 0) -> RequestTimeline:
    return RequestTimeline(7, 100, received_us, received_us + 500)


@given(st.integers(0, 2**50), EVENTS)
def test_gaps_sum_to_the_whole_less_the_first(received_us: int, events: list[tuple[int, int]]) -> None:
    timeline, now_us, waited_us = _timeline(received_us), received_us, list[int]()
    for wait_us, tokens in events:
        now_us += wait_us
        waited_us.append(timeline.note_tokens(tokens, now_us))
    timeline.note_end("stop", now_us)
    whole_us, first_us = (
        timeline.since_received_us(time_us) for time_us in (timeline.end_us, timeline.first_token_us)
    )
    assert whole_us is not None
    assert first_us is not None
    assert sum(timeline.gaps_us()) == whole_us - first_us
    assert waited_us == [wait_us for wait_us, _ in events]
    assert len(timeline.gaps_us()) == timeline.output_tokens - 1


def test_token_times_are_bounded_and_counts_go_on() -> None:
    timeline = _timeline()
    for now_us in range(TOKEN_TIMES_MAX + 5):
        timeline.note_tokens(1, now_us)
    timeline.note_tokens(3, 10_000)
    assert len(timeline.token_us) == TOKEN_TIMES_MAX
    assert timeline.output_tokens == TOKEN_TIMES_MAX + 8
    assert timeline.last_token_us == 10_000


def test_rate_is_what_the_reader_sees_after_the_first_token() -> None:
    timeline = _timeline()
    timeline.note_tokens(1, 1_000_000)
    assert timeline.tokens_per_s is None
    timeline.note_tokens(1, 1_100_000)
    timeline.note_tokens(1, 1_200_000)
    assert timeline.tokens_per_s == 10.0


def test_open_requests_are_kept_and_ended_ones_bounded() -> None:
    requests = RecentRequests()
    lasting = requests.open(1, prompt_tokens=1, received_us=0, queued_us=0)
    for request_id in range(2, ENDED_MAX + 12):
        ended = requests.open(request_id, prompt_tokens=1, received_us=0, queued_us=0)
        requests.end(ended, "stop", request_id)
    found = list(requests)
    assert found[0] is lasting
    assert len(found) == 1 + ENDED_MAX
    assert found[1].request_id == ENDED_MAX + 11
    assert requests.find("2") == []


def test_choices_are_found_by_the_id_of_their_answer_and_alone_by_their_own() -> None:
    requests = RecentRequests()
    made = [requests.open(i, prompt_tokens=1, received_us=0, queued_us=0, answer_id="cmpl-a") for i in (1, 2)]
    requests.end(made[0], "stop", 5)
    assert requests.find("cmpl-a") == made
    assert requests.find("2") == [made[1]]
    assert requests.find("cmpl-b") == []


def test_a_session_is_a_hash_that_differs_between_engines() -> None:
    hashes = {
        one.open(1, prompt_tokens=1, received_us=0, queued_us=0, session=name).session
        for one in (RecentRequests(), RecentRequests())
        for name in ("alice@example.org", "bob")
    }
    assert len(hashes) == 4
    assert not any("alice" in str(value) for value in hashes)


def test_a_timeline_is_one_line_of_numbers() -> None:
    timeline = RequestTimeline(7, 100, 0, 500)
    timeline.note_first_step(1500, 64)
    timeline.note_tokens(12, 20_000)
    timeline.note_end("stop", 90_000)
    assert str(timeline) == (
        "request 7: stop after 90.0 ms (queue 1.5, first token 20.0); 100 prompt tokens, 64 cached, 12 out"
    )
