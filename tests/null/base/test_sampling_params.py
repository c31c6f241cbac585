# SPDX-License-Identifier: MIT
"""Ranges of sampling parameters: the edges pass, one step beyond names the field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tokenspeed.base.errors import RequestError
from tokenspeed.base.sampling import SamplingParams

EDGES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"top_p": 1e-9, "min_p": 1.0, "top_k": 2**31 - 1},
    {"presence": -2.0, "frequency": 2.0, "repetition": 2.0},
    {"tokens_max": 4, "tokens_min": 4, "logprobs": 20, "logit_bias": {0: 100.0}, "seed": 2**63 - 1},
]
BEYOND: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("top_k", -1),
    ("top_p", 0.0),
    ("min_p", 1.1),
    ("presence", 2.1),
    ("frequency", -2.1),
    ("repetition", 0.0),
    ("seed", -2),
    ("tokens_max", -1),
    ("logprobs", 21),
    ("stop_ids", (-1,)),
    ("stop_ids", tuple(range(257))),
    ("logit_bias", {1: 101.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", dict.fromkeys(range(1025), 0.0)),
]


@pytest.mark.parametrize("values", EDGES)
def test_edges_pass(values: dict[str, Any]) -> None:
    SamplingParams(**values).check()


@pytest.mark.parametrize(("field", "value"), BEYOND)
def test_beyond_the_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value}).check()
    assert caught.value.param == field
    assert caught.value.code == "invalid_value"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("top_k", 5.5),
        ("tokens_max", 5.5),
        ("stop_ids", "abc"),
        ("stop_ids", (1, "2")),
        ("logit_bias", {"3": 1.0}),
        ("logprobs", True),
    ],
)
def test_a_wrong_type_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{field}: expected ") as caught:
        SamplingParams(**{field: value}).check()
    assert (caught.value.param, caught.value.code) == (field, "invalid_type")


def test_bounds_are_said_in_full() -> None:
    with pytest.raises(RequestError, match=r"in -1\.\.9223372036854775807$"):
        SamplingParams(seed=-2).check()


def test_more_tokens_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(RequestError, match="tokens_min"):
        SamplingParams(tokens_max=3, tokens_min=4).check()


def test_every_field_is_described() -> None:
    fields = {field.name for field in msgspec.structs.fields(SamplingParams)}
    assert fields == {
        "temperature", "top_k", "top_p", "min_p", "presence", "frequency", "repetition", "seed",
        "tokens_max", "tokens_min", "stop_ids", "logit_bias", "logprobs", "forced",
    }  # fmt: skip
