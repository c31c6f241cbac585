# SPDX-License-Identifier: MIT
"""The oracle accepts the lone run's answer and its end, once, and nothing else."""

from __future__ import annotations

import pytest

from tokenspeed.sim import model
from tokenspeed.sim.oracle import Expectation, Oracle
from tokenspeed.sim.violation import ViolationError

PROMPT = (5, 6, 7)


def expect(*, tokens_min: int = 0, stop_after: int | None = None) -> Expectation:
    return Expectation.of(1, b"", PROMPT, 9, tokens_max=4, tokens_min=tokens_min, stop_after=stop_after)


@pytest.fixture
def oracle() -> Oracle:
    oracle = Oracle("a test")
    oracle.accept(expect())
    return oracle


def hear(oracle: Oracle, *answer: int, finish: str = "length") -> None:
    for token in answer[:-1]:
        oracle.hear(1, [token], None)
    oracle.hear(1, [answer[-1]], finish)


def test_expectation_is_the_lone_run() -> None:
    assert expect().answer == tuple(model.complete(model.fold(model.root(b""), PROMPT)[-1], 9, 4))


def test_stop_id_ends_the_answer_with_itself() -> None:
    stopped = expect(stop_after=1)
    assert (stopped.answer, stopped.finish) == (expect().answer[:2], "stop")


@pytest.mark.parametrize(("tokens_min", "finish"), [(2, "stop"), (3, "length")])
def test_stop_id_counts_from_tokens_min_on(tokens_min: int, finish: str) -> None:
    assert expect(tokens_min=tokens_min, stop_after=1).finish == finish


def test_right_answer_closes(oracle: Oracle) -> None:
    hear(oracle, *expect().answer)
    oracle.close()


def test_wrong_token_breaks_tokens(oracle: Oracle) -> None:
    with pytest.raises(ViolationError, match=r"^tokens"):
        oracle.hear(1, [expect().answer[1]], None)


def test_more_tokens_than_the_answer_break_tokens(oracle: Oracle) -> None:
    with pytest.raises(ViolationError, match=r"^tokens"):
        oracle.hear(1, [*expect().answer, 1], "length")


@pytest.mark.parametrize("finish", ["stop", "cancelled", "error", None])
def test_wrong_end_breaks_i8(oracle: Oracle, finish: str | None) -> None:
    with pytest.raises(ViolationError, match=r"^I8"):
        hear(oracle, *expect().answer, finish=finish)


def test_early_end_breaks_i8(oracle: Oracle) -> None:
    with pytest.raises(ViolationError, match=r"^I8"):
        hear(oracle, *expect().answer[:2])


def test_second_end_breaks_i8(oracle: Oracle) -> None:
    hear(oracle, *expect().answer)
    with pytest.raises(ViolationError, match=r"^I8"):
        oracle.hear(1, [], "length")


def test_word_of_a_request_never_accepted_breaks_i8(oracle: Oracle) -> None:
    with pytest.raises(ViolationError, match=r"^I8"):
        oracle.hear(2, [], "cancelled")


def test_no_end_breaks_i8(oracle: Oracle) -> None:
    with pytest.raises(ViolationError, match=r"^I8"):
        oracle.close()


def test_request_that_may_leave_may_also_complete(oracle: Oracle) -> None:
    oracle.leave(1, "cancelled", must=False)
    hear(oracle, *expect().answer)


def test_request_that_must_leave_says_no_more(oracle: Oracle) -> None:
    oracle.leave(1, "cancelled", must=True)
    with pytest.raises(ViolationError, match=r"^I8"):
        oracle.hear(1, [expect().answer[0]], None)


def test_request_leaves_with_the_reason_it_was_given(oracle: Oracle) -> None:
    oracle.leave(1, "cancelled", must=True)
    with pytest.raises(ViolationError, match=r"^I8"):
        oracle.hear(1, [], "error")
    oracle.hear(1, [], "cancelled")
    assert oracle.closed == {1: "cancelled"}


def test_request_that_stays_must_complete(oracle: Oracle) -> None:
    oracle.leave(1, "error", must=False)
    oracle.stay(1)
    with pytest.raises(ViolationError, match=r"^I8"):
        oracle.hear(1, [], "error")
