# SPDX-License-Identifier: MIT
"""What a prefix hit may be, and who must be planned next."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokenspeed.control import SchedulerOptions
from tokenspeed.sim.laws import HitLaw, ProgressLaw
from tokenspeed.sim.oracle import Expectation
from tokenspeed.sim.violation import ViolationError

P = 4
PROMPT = tuple(range(10))
NOTHING_LOST = SimpleNamespace(evictions=0, retractions=0, blocks_corrupt=0)


def options(*, prefix_cache: bool = True, rows: int = 2) -> SchedulerOptions:
    return SchedulerOptions(
        blocks_total=16,
        block_tokens=P,
        slots_max=4,
        tokens_per_step_max=16,
        rows_per_step_max=rows,
        prefill_tokens_max=16,
        waiting_max=8,
        context_tokens_max=64,
        prefix_cache=prefix_cache,
        log_bytes=4096,
    )


def expect(request_id: int, salt: bytes = b"", prompt: tuple[int, ...] = PROMPT) -> Expectation:
    return Expectation.of(request_id, salt, prompt, 1, tokens_max=4, tokens_min=0, stop_after=None)


def hit_law(*, prefix_cache: bool = True) -> HitLaw:
    """Request 1 has committed 9 tokens; 2 is its twin, 3 of another tenant, 4 differs near the end."""
    other = (*PROMPT[:7], 99, *PROMPT[8:])
    requests = [expect(1), expect(2), expect(3, b"other"), expect(4, prompt=other)]
    law = HitLaw(options(prefix_cache=prefix_cache), {each.request_id: each for each in requests})
    law.commit(1, 9)
    return law


@pytest.mark.parametrize(("request_id", "cached"), [(2, 8), (3, 0), (4, 4)])
def test_hit_is_what_the_same_tenant_committed(request_id: int, cached: int) -> None:
    assert hit_law().check(request_id, cached, len(PROMPT), NOTHING_LOST) == (cached > 0)


@pytest.mark.parametrize(("request_id", "cached"), [(2, 4), (2, 12), (3, 8), (4, 8), (4, 0)])
def test_any_other_hit_breaks_cache(request_id: int, cached: int) -> None:
    with pytest.raises(ViolationError, match=r"^cache"):
        hit_law().check(request_id, cached, len(PROMPT), NOTHING_LOST)


def test_last_token_is_never_hit() -> None:
    assert hit_law().check(2, 4, 8, NOTHING_LOST)
    with pytest.raises(ViolationError, match=r"^cache"):
        hit_law().check(2, 8, 8, NOTHING_LOST)


@pytest.mark.parametrize("lost", [{"evictions": 1, "retractions": 0}, {"evictions": 0, "retractions": 1}])
def test_hit_may_be_less_once_something_was_lost_but_never_more(lost: dict[str, int]) -> None:
    law, stats = hit_law(), SimpleNamespace(blocks_corrupt=0, **lost)
    assert not law.check(2, 4, len(PROMPT), stats)
    with pytest.raises(ViolationError, match=r"^cache"):
        law.check(3, 4, len(PROMPT), stats)


def test_hit_without_a_prefix_cache_breaks_cache() -> None:
    law = hit_law(prefix_cache=False)
    assert not law.check(2, 0, len(PROMPT), NOTHING_LOST)
    with pytest.raises(ViolationError, match=r"^cache"):
        law.check(2, 4, len(PROMPT), NOTHING_LOST)


def progress_law(*, rows: int = 2) -> ProgressLaw:
    """Requests 1, 2, 3 came in this order; 3 matters more."""
    law = ProgressLaw(options(rows=rows))
    for request_id, priority in ((1, 0), (2, 0), (3, 1)):
        law.accept(request_id, priority)
    return law


def test_first_that_has_run_may_be_passed_over_k_times_in_a_row() -> None:
    law = progress_law()
    for _ in range(2):
        for _ in range(4):
            law.check({1, 2, 3}, {1, 2}, {2, 3})
        law.check({1, 2, 3}, {1, 2}, {1})
    for _ in range(4):
        law.check({1, 2, 3}, {1, 2}, {2, 3})
    with pytest.raises(ViolationError, match=r"^I10: request 1 "):
        law.check({1, 2, 3}, {1, 2}, {2, 3})


def test_first_by_rank_is_watched_where_none_has_run() -> None:
    law = progress_law()
    for _ in range(4):
        law.check({1, 2, 3}, set(), {1})
    with pytest.raises(ViolationError, match=r"^I10: request 3 "):
        law.check({1, 2, 3}, set(), {1})


def test_single_row_gives_the_whole_context_to_those_that_decode() -> None:
    law = progress_law(rows=1)
    for _ in range(64):
        law.check({1, 2}, {1, 2}, {2})
    with pytest.raises(ViolationError, match=r"^I10"):
        law.check({1, 2}, {1, 2}, {2})


def test_nobody_open_is_nobody_passed_over() -> None:
    law = progress_law()
    for _ in range(100):
        law.check(set(), {1}, set())
