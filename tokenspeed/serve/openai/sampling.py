# SPDX-License-Identifier: MIT
"""From the fields that OpenAI's bodies share to how a choice is sampled and read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from tokenspeed.base.sampling import SEED_MAX, SamplingParams
from tokenspeed.serve.body import BodyReader
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.openai.schema import SamplingBody, StreamOptions
from tokenspeed.serve.sampling import checked_stops, completed
from tokenspeed.text.output import OutputOptions
from tokenspeed.text.plane import TextPlane

CHOICES_MAX: Final = 1024  # answers of one API request
CHOICES_PER_PROMPT_MAX: Final = 128
_OLD_NAMES: Final = (
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
)


def check_common(body: SamplingBody, raw: dict[str, Any], bodies: BodyReader) -> None:
    """Refuse what the shared fields ask for and this server does not do."""
    if body.stream_options is not None:
        bodies.note_unknown(raw["stream_options"], StreamOptions, "stream_options.")
    for name in _OLD_NAMES:
        if getattr(body, name) is not None:
            raise refused(name, f"use structured_outputs.{name.removeprefix('guided_')}")
    if body.best_of not in (None, 1, body.n):
        raise refused("best_of", "answers are not ranked; use n")
    if body.n is not None and not 1 <= body.n <= CHOICES_PER_PROMPT_MAX:
        raise out_of_range("n", body.n, f"in 1..{CHOICES_PER_PROMPT_MAX}")
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "only with stream: true")


def params_of(
    body: SamplingBody, text: TextPlane, *, tokens_max: int | None, logprobs: int | None
) -> SamplingParams:
    """Sampling of each choice; raises `RequestError` for values out of range."""
    if body.seed is not None and not -SEED_MAX <= body.seed <= SEED_MAX:
        raise out_of_range("seed", body.seed, f"in -{SEED_MAX}..{SEED_MAX}")
    stop_ids = dict.fromkeys((*(body.stop_token_ids or ()), *(() if body.ignore_eos else text.stop_ids)))
    return completed(
        text,
        {
            "temperature": body.temperature,
            "top_k": body.top_k,
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
        },
    )


def options_of(body: SamplingBody, base: OutputOptions) -> OutputOptions:
    """How each choice is read, with what the shared fields say of it."""
    return replace(
        base,
        stops=checked_stops((body.stop,) if isinstance(body.stop, str) else body.stop, "stop"),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
    )
