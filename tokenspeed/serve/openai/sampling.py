# SPDX-License-Identifier: MIT
"""From a body's fields to how a choice is sampled and read.

A field the request leaves unset takes the checkpoint's recommendation (rule R10), then the neutral default.
Ranges of sampling fields are `base.sampling`'s business; what is checked here is what exists only in the API.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from tokenspeed.base.sampling import SEED_DRAWN, SEED_MAX, TOKENS_FIT, SamplingParams
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.generation import Choice, Origin
from tokenspeed.serve.openai.schema import SamplingBody
from tokenspeed.text.generation_config import GenerationDefaults
from tokenspeed.text.output import OutputOptions

CHOICES_MAX: Final = 1024  # answers of one API request
CHOICES_PER_PROMPT_MAX: Final = 128
STOPS_MAX: Final = 16
STOP_CHARACTERS_MAX: Final = 1024
NAME_CHARACTERS_MAX: Final = 256  # of a session or a salt
PRIORITY_MAX: Final = 2**31 - 1
_T = TypeVar("_T")
_GRAMMAR_FIELDS: Final = (
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "structured_outputs",
)
_GRAMMAR_REASON: Final = "constrained output is not offered by this version; ask for the format in the prompt"


def check_common(body: SamplingBody) -> None:
    """Refuse what the shared fields ask for and this server does not do."""
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
        raise out_of_range("number of stop strings", len(stops), f"at most {STOPS_MAX}")
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
    params = SamplingParams(
        temperature=_first(body.temperature, defaults.temperature, 1.0),
        top_k=0 if body.top_k == -1 else _first(body.top_k, defaults.top_k, 0),  # some say -1 for off
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        min_p=_first(body.min_p, defaults.min_p, 0.0),
        presence=_first(body.presence_penalty, None, 0.0),
        frequency=_first(body.frequency_penalty, None, 0.0),
        repetition=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        seed=SEED_DRAWN if body.seed is None else body.seed % (SEED_MAX + 1),
        tokens_max=TOKENS_FIT if tokens_max is None else tokens_max,
        tokens_min=_first(body.min_tokens, None, 0),
        stop_ids=tuple(stop_ids),
        logit_bias=body.logit_bias or None,
        logprobs=logprobs,
    )
    params.check()
    return params


def choices_of(prompt: list[int], params: SamplingParams, options: OutputOptions, n: int) -> list[Choice]:
    """`n` answers to one prompt; a seed given makes them differ and stay reproducible."""
    if params.seed == SEED_DRAWN:
        return [Choice(prompt, params, options)] * n
    seeds = ((params.seed + index) % (SEED_MAX + 1) for index in range(n))
    return [Choice(prompt, msgspec.structs.replace(params, seed=seed), options) for seed in seeds]


def origin_of(body: SamplingBody, session_header: str | None) -> Origin:
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
        session=(session_header or "")[:NAME_CHARACTERS_MAX] or body.session_id or body.prompt_cache_key,
    )


def options_of(body: SamplingBody, base: OutputOptions) -> OutputOptions:
    """How each choice is read, with what the shared fields say of it."""
    return replace(
        base,
        stops=stops_of(body),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
    )


def _first(value: _T | None, recommended: _T | None, neutral: _T) -> _T:
    return value if value is not None else recommended if recommended is not None else neutral
