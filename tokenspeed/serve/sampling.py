# SPDX-License-Identifier: MIT
"""How each choice is sampled, from what a dialect read of a body.

A field the request leaves unset takes the checkpoint's recommendation (rule R10), then the neutral default.
Ranges of sampling fields are `base.sampling`'s business; what is checked here is what exists only in the APIs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from tokenspeed.base.constraint import Constraint
from tokenspeed.base.sampling import SEED_DRAWN, SEED_MAX, SamplingParams
from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.generation import Choice
from tokenspeed.text.output import OutputOptions
from tokenspeed.text.plane import TextPlane

STOPS_MAX: Final = 16
STOP_CHARACTERS_MAX: Final = 1024


def completed(text: TextPlane, given: dict[str, Any]) -> SamplingParams:
    """The fields given, by the names of `SamplingParams`, None where unset; raises `RequestError` out of range."""
    tokens_max, top_k = given.get("tokens_max"), given.get("top_k")
    if tokens_max is not None and tokens_max < 1:
        raise out_of_range("max_tokens", tokens_max, "at least 1")
    values = (
        {"stop_ids": text.stop_ids} | given | {"top_k": 0 if top_k == -1 else top_k}
    )  # some say -1 for off
    values = {name: value for name, value in values.items() if value is not None}
    params = msgspec.structs.replace(text.defaults.sampling(), **values)
    params.check()
    return params


def checked_stops(given: Sequence[str] | None, param: str) -> tuple[str, ...]:
    """The stop strings of a body's field."""
    stops = tuple(given or ())
    if len(stops) > STOPS_MAX:
        raise out_of_range("number of stop strings", len(stops), f"at most {STOPS_MAX}", param=param)
    for stop in stops:
        if not 1 <= len(stop) <= STOP_CHARACTERS_MAX:
            raise out_of_range(param, f"a string of {len(stop)} characters", f"of 1..{STOP_CHARACTERS_MAX}")
    return stops


def choices_of(
    prompt: np.ndarray | Sequence[int],
    params: SamplingParams,
    options: OutputOptions,
    n: int,
    constraint: Constraint | None = None,
) -> list[Choice]:
    """`n` answers to one prompt; a seed given makes them differ and stay reproducible."""
    if params.seed == SEED_DRAWN:
        return [Choice(prompt, params, options, constraint)] * n
    seeds = ((params.seed + index) % (SEED_MAX + 1) for index in range(n))
    return [Choice(prompt, msgspec.structs.replace(params, seed=seed), options, constraint) for seed in seeds]
