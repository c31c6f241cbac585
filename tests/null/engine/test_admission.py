# SPDX-License-Identifier: MIT
"""What a request must satisfy: the edges pass, one beyond is named; what is left open is filled."""

from __future__ import annotations

import numpy as np
import pytest

from tokenspeed.base.errors import RequestError
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.engine import admission

PLAIN = SamplingParams()


def _forced(*ids: int) -> bytes:
    return np.array(ids, "<i4").tobytes()


def _check(ids: list[int], sampling: SamplingParams = PLAIN) -> None:
    admission.check(np.array(ids), sampling, vocab_size=10, context_tokens_max=8)


def test_the_edges_pass() -> None:
    _check([0])
    _check([9] * 7)
    _check([0], SamplingParams(stop_ids=(0, 9), logit_bias={9: 1.0}))
    _check([1] * 4, SamplingParams(forced=_forced(0, 9, 9, 9)))


@pytest.mark.parametrize(
    ("ids", "sampling", "code", "param"),
    [
        ([], PLAIN, "empty_prompt", "prompt"),
        ([10], PLAIN, "invalid_value", "prompt"),
        ([3, -1], PLAIN, "invalid_value", "prompt"),
        ([1] * 8, PLAIN, "context_length_exceeded", "prompt"),
        ([1], SamplingParams(stop_ids=(10,)), "invalid_value", "stop_ids"),
        ([1], SamplingParams(logit_bias={10: 0.0}), "invalid_value", "logit_bias"),
        ([1], SamplingParams(temperature=-1.0), "invalid_value", "temperature"),
        ([1], SamplingParams(forced=_forced(3, 10)), "invalid_value", "forced"),
        ([1], SamplingParams(forced=_forced(-1, 3)), "invalid_value", "forced"),
        ([1], SamplingParams(forced=b"abc"), "invalid_value", "forced"),
        ([1] * 5, SamplingParams(forced=_forced(1, 2, 3, 4)), "context_length_exceeded", "forced"),
    ],
)
def test_one_beyond_is_named(ids: list[int], sampling: SamplingParams, code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        _check(ids, sampling)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_prompt_too_long_says_both_numbers() -> None:
    with pytest.raises(RequestError, match="prompt is too long: 9 tokens > 7 maximum"):
        _check([1] * 9)


def test_what_is_left_open_is_filled() -> None:
    first, second = (admission.complete(PLAIN, prompt_tokens=3, context_tokens_max=8) for _ in range(2))
    assert first.tokens_max == 5
    assert first.seed >= 0
    assert first.seed != second.seed


def test_what_is_given_is_kept_and_clamped_to_the_context() -> None:
    wish = SamplingParams(tokens_max=100, tokens_min=50, seed=4)
    given = admission.complete(wish, prompt_tokens=3, context_tokens_max=8)
    assert (given.tokens_max, given.tokens_min, given.seed) == (5, 5, 4)
    short = admission.complete(SamplingParams(tokens_max=2), prompt_tokens=3, context_tokens_max=8)
    assert short.tokens_max == 2


def test_a_recorded_answer_is_said_whole() -> None:
    wish = SamplingParams(forced=_forced(1, 2, 3), tokens_max=1, tokens_min=1, stop_ids=(2,))
    given = admission.complete(wish, prompt_tokens=3, context_tokens_max=8)
    assert (given.tokens_max, given.tokens_min, given.stop_ids) == (3, 0, ())
