# SPDX-License-Identifier: MIT
"""From a body's fields to how a choice is sampled and read.

A field the request leaves unset takes the checkpoint's recommendation (rule R10), then the neutral default.
Ranges of sampling fields are `base.sampling`'s business; what is checked here is what exists only in the API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np
from starlette.requests import Request

from tokenspeed.base.sampling import SEED_DRAWN, SEED_MAX, SamplingParams
from tokenspeed.serve.body import BodyReader
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.generation import Choice, Origin
from tokenspeed.serve.openai.schema import SamplingBody, StreamOptions
from tokenspeed.text.generation_config import GenerationDefaults
from tokenspeed.text.output import OutputOptions

CHOICES_MAX: Final = 1024  # answers of one API request
CHOICES_PER_PROMPT_MAX: Final = 128
STOPS_MAX: Final = 16
STOP_CHARACTERS_MAX: Final = 1024
NAME_CHARACTERS_MAX: Final = 256  # of a session or a salt
PRIORITY_MAX: Final = 2**31 - 1
_GRAMMAR_FIELDS: Final = (
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "structured_outputs",
)
_GRAMMAR_REASON: Final = "constrained output is not offered by this version; ask for the format in the prompt"


def check_common(body: SamplingBody, raw: dict[str, Any], bodies: BodyReader) -> None:
    """Refuse what the shared fields ask for and this server does not do."""
    if body.stream_options is not None:
        bodies.note_unknown(raw["stream_options"], StreamOptions, "stream_options.")
    for name in _GRAMMAR_FIELDS:
        if getattr(body, name) is not None:
            raise refused(name, _GRAMMAR_REASON)
    if body.response_format is not None and body.response_format.type != "text":
        raise refused("response_format", f"type {body.response_format.type!r}: {_GRAMMAR_REASON}")
    if body.best_of not in (None, 1, body.n):
        raise refused("best_of", "answers are not ranked; use n")
    if body.n is not None and not 1 <= body.n <= CHOICES_PER_PROMPT_MAX:
        raise out_of_range("n", body.n, f"in 1..{CHOICES_PER_PROMPT_MAX}")
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "only with stream: true")
    if body.priority is not None and abs(body.priority) > PRIORITY_MAX:
        raise out_of_range("priority", body.priority, f"in -{PRIORITY_MAX}..{PRIORITY_MAX}")


def stops_of(body: SamplingBody) -> tuple[str, ...]:
    """The stop strings of a body."""
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > STOPS_MAX:
        raise out_of_range("number of stop strings", len(stops), f"at most {STOPS_MAX}", param="stop")
    for stop in stops:
        if not 1 <= len(stop) <= STOP_CHARACTERS_MAX:
            raise out_of_range("stop", f"a string of {len(stop)} characters", f"of 1..{STOP_CHARACTERS_MAX}")
    return stops


def params_of(
    body: SamplingBody,
    defaults: GenerationDefaults,
    model_stop_ids: tuple[int, ...],
    *,
    tokens_max: int | None,
    logprobs: int | None,
) -> SamplingParams:
    """Sampling of each choice; raises `RequestError` for values out of range."""
    if tokens_max is not None and tokens_max < 1:
        raise out_of_range("max_tokens", tokens_max, "at least 1")
    if body.seed is not None and not -SEED_MAX <= body.seed <= SEED_MAX:
        raise out_of_range("seed", body.seed, f"in -{SEED_MAX}..{SEED_MAX}")
    stop_ids = dict.fromkeys((*(body.stop_token_ids or ()), *(() if body.ignore_eos else model_stop_ids)))
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_k": 0 if body.top_k == -1 else body.top_k,  # some say -1 for off
        "top_p": body.top_p,
        "min_p": body.min_p,
        "presence": body.presence_penalty,
        "frequency": body.frequency_penalty,
        "repetition": body.repetition_penalty,
        "seed": None if body.seed is None else body.seed % (SEED_MAX + 1),
        "tokens_max": tokens_max,
        "tokens_min": body.min_tokens,
        "stop_ids": tuple(stop_ids),
        "logit_bias": body.logit_bias or None,
        "logprobs": logprobs,
    }
    params = msgspec.structs.replace(
        defaults.sampling(), **{name: value for name, value in given.items() if value is not None}
    )
    params.check()
    return params


def choices_of(
    prompt: np.ndarray | Sequence[int], params: SamplingParams, options: OutputOptions, n: int
) -> list[Choice]:
    """`n` answers to one prompt; a seed given makes them differ and stay reproducible."""
    if params.seed == SEED_DRAWN:
        return [Choice(prompt, params, options)] * n
    seeds = ((params.seed + index) % (SEED_MAX + 1) for index in range(n))
    return [Choice(prompt, msgspec.structs.replace(params, seed=seed), options) for seed in seeds]


def origin_of(body: SamplingBody, request: Request) -> Origin:
    """Where a request comes from (rule R13: header first, then the body's names)."""
    names = {
        "session_id": body.session_id,
        "prompt_cache_key": body.prompt_cache_key,
        "cache_salt": body.cache_salt,
    }
    for name, value in names.items():
        if value is not None and len(value) > NAME_CHARACTERS_MAX:
            raise out_of_range(
                name, f"a string of {len(value)} characters", f"of at most {NAME_CHARACTERS_MAX}"
            )
    return Origin(
        salt=(body.cache_salt or "").encode(),
        priority=body.priority or 0,
        session=request.headers.get("x-session-id", "")[:NAME_CHARACTERS_MAX]
        or body.session_id
        or body.prompt_cache_key,
        received_us=request.state.received_us,
        traceparent=request.headers.get("traceparent", "")[:NAME_CHARACTERS_MAX] or None,
    )


def options_of(body: SamplingBody, base: OutputOptions) -> OutputOptions:
    """How each choice is read, with what the shared fields say of it."""
    return replace(
        base,
        stops=stops_of(body),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
    )
