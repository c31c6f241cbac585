# SPDX-License-Identifier: MIT
"""What a request must satisfy before any work: ranges, token ids, lengths.

In: a prompt of ids, its sampling, the model's sizes. Out: nothing, or a `RequestError` that names the
field. The front asks first, to answer the caller; the core asks again, for nothing that arrives may raise
in its loop. Capacity is not judged here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import msgspec
import numpy as np

from tokenspeed.base.errors import PromptTooLongError, RequestError
from tokenspeed.base.sampling import SEED_DRAWN, SEED_MAX, TOKENS_FIT, SamplingParams
from tokenspeed.engine import wire


def check(prompt: np.ndarray, sampling: SamplingParams, *, vocab_size: int, context_tokens_max: int) -> None:
    """Raise `RequestError` for the first thing that is wrong; prompt: integers [n]."""
    sampling.check()
    if not len(prompt):
        raise RequestError("the prompt is empty", code="empty_prompt", param="prompt")
    if len(prompt) >= context_tokens_max:
        raise PromptTooLongError(len(prompt), context_tokens_max - 1)
    if len(prompt) + sampling.forced_tokens > context_tokens_max:
        raise RequestError(
            f"forced holds {sampling.forced_tokens} tokens, which with a prompt of {len(prompt)} "
            f"exceed the context of {context_tokens_max}",
            code="context_length_exceeded",
            param="forced",
        )
    _check_ids("prompt", (int(prompt.min()), int(prompt.max())), vocab_size)
    _check_ids("stop_ids", sampling.stop_ids, vocab_size)
    _check_ids("logit_bias", sampling.logit_bias or (), vocab_size)
    if sampling.forced:
        forced = wire.ids_array(sampling.forced)
        _check_ids("forced", (int(forced.min()), int(forced.max())), vocab_size)


def complete(sampling: SamplingParams, *, prompt_tokens: int, context_tokens_max: int) -> SamplingParams:
    """Draw a seed if none is given, and never ask for more tokens than the context holds.

    A recorded answer is said whole: its length is the limit, and no id in it ends the request.
    """
    if sampling.forced:
        sampling = msgspec.structs.replace(
            sampling, tokens_max=sampling.forced_tokens, tokens_min=0, stop_ids=()
        )
    room = context_tokens_max - prompt_tokens
    tokens_max = room if sampling.tokens_max == TOKENS_FIT else min(sampling.tokens_max, room)
    return msgspec.structs.replace(
        sampling,
        tokens_max=tokens_max,
        tokens_min=min(sampling.tokens_min, tokens_max),
        seed=secrets.randbelow(SEED_MAX) if sampling.seed == SEED_DRAWN else sampling.seed,
    )


def _check_ids(param: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"{param} holds token id {token_id}; this model's ids are 0..{vocab_size - 1}",
                code="invalid_value",
                param=param,
            )
