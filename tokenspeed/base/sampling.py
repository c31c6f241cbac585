# SPDX-License-Identifier: MIT
"""How a request wants its tokens chosen, and what is reported of each choice.

In: values of an API body or of a library call. Out: one immutable struct that travels front -> core ->
sampler unchanged. Does not sample and knows no vocabulary: `check` only compares with ranges. Stop strings
are not here; text is the front's.
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from tokenspeed.base.errors import RequestError

SEED_DRAWN: Final = -1  # "the front draws one"; past the front a seed is never negative
SEED_MAX: Final = 2**63 - 1
TOKENS_FIT: Final = 0  # "as many as the context holds"; past the front `tokens_max` is never 0
LOGPROBS_MAX: Final = 20
TOP_K_MAX: Final = 2**31 - 1
FORCED_ID_BYTES: Final = 4
LOGIT_BIAS_MAX: Final = 1024  # entries
STOP_IDS_MAX: Final = 256  # entries
PENALTY_MAX: Final = 2.0


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """Sampling of one request. Every default means "change nothing"."""

    temperature: float = 1.0
    """0 .. 100; 0 is greedy."""
    top_k: int = 0
    """0 (off) .. 2^31-1: keep the k likeliest tokens."""
    top_p: float = 1.0
    """0 < p <= 1: keep the least set of likeliest tokens whose mass reaches p."""
    min_p: float = 0.0
    """0 .. 1: keep tokens at least min_p times as likely as the likeliest."""
    presence: float = 0.0
    """-2 .. 2: subtracted once from the logit of every token in the output so far."""
    frequency: float = 0.0
    """-2 .. 2: subtracted per occurrence in the output so far."""
    repetition: float = 1.0
    """0 < r <= 2: divides positive and multiplies negative logits of tokens in the prompt or the output."""
    seed: int = SEED_DRAWN
    """0 .. 2^63-1; equal seeds give equal tokens whatever else is in the batch."""
    tokens_max: int = TOKENS_FIT
    """>= 1: most new tokens; 0 asks for as many as the context holds."""
    tokens_min: int = 0
    """0 .. tokens_max: a stop id does not end the request before this many new tokens."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the request (at most 256); the front adds the model's own unless told otherwise."""
    logit_bias: dict[int, float] | None = None
    """Token id -> -100 .. 100, added to its logit (at most 1024 entries)."""
    logprobs: int | None = None
    """None (off), or 0 .. 20: report the chosen token's log probability and this many of the likeliest."""
    forced: bytes = b""
    """A recorded answer to say instead of choosing: little-endian int32 ids; all of it, then the request ends."""

    @property
    def forced_tokens(self) -> int:
        """Length of the recorded answer; 0 where tokens are chosen."""
        return len(self.forced) // FORCED_ID_BYTES

    def check(self) -> None:
        """Raise `RequestError` naming the first field of a wrong type (code `invalid_type`) or out of range
        (`invalid_value`)."""
        _check_types(self)
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_k", self.top_k, 0, TOP_K_MAX)
        _within("top_p", self.top_p, math.ulp(0.0), 1.0, "above 0 and at most 1")
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("presence", self.presence, -PENALTY_MAX, PENALTY_MAX)
        _within("frequency", self.frequency, -PENALTY_MAX, PENALTY_MAX)
        _within("repetition", self.repetition, math.ulp(0.0), PENALTY_MAX, "above 0 and at most 2")
        _within("seed", self.seed, SEED_DRAWN, SEED_MAX)
        _within("tokens_max", self.tokens_max, 0, TOP_K_MAX)
        _within("tokens_min", self.tokens_min, 0, self.tokens_max or TOP_K_MAX)
        _within("logprobs", self.logprobs or 0, 0, LOGPROBS_MAX)
        _within("number of stop_ids", len(self.stop_ids), 0, STOP_IDS_MAX)
        for token_id in self.stop_ids:
            _within("stop_ids", token_id, 0, TOP_K_MAX)
        bias = self.logit_bias or {}
        _within("number of logit_bias entries", len(bias), 0, LOGIT_BIAS_MAX)
        for token_id, value in bias.items():
            _within("logit_bias", token_id, 0, TOP_K_MAX)
            _within("logit_bias", value, -100.0, 100.0)
        if len(self.forced) % FORCED_ID_BYTES:
            raise RequestError(
                f"forced has {len(self.forced)} bytes; it must be whole ids of {FORCED_ID_BYTES}",
                code="invalid_value",
                param="forced",
            )


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability of one chosen token under the model, before temperature and truncation."""

    id: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens, best first, as (id, logprob)."""
    rank: int
    """1 when the chosen token is the likeliest."""


def _check_types(params: SamplingParams) -> None:
    """A struct takes any values when it is made; the core could not decode them."""
    try:
        msgspec.convert(msgspec.structs.astuple(params), SamplingParams)
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at ")
        found = re.search(r"\$\[(\d+)\]", where)
        name = SamplingParams.__struct_fields__[int(found[1])] if found else "sampling"
        wanted = said.replace("`", "").replace("Expected", "expected")
        raise RequestError(f"{name}: {wanted}", code="invalid_type", param=name) from error


def _within(name: str, value: float, low: float, high: float, wording: str | None = None) -> None:
    if not low <= value <= high:  # written so that NaN fails too
        wanted = wording or f"in {_plain(low)}..{_plain(high)}"
        param = name.removeprefix("number of ").removesuffix(" entries")
        raise RequestError(f"{name} is {value}; it must be {wanted}", code="invalid_value", param=param)


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
