# SPDX-License-Identifier: MIT
"""Log probabilities of a prompt's own tokens, for `echo` with `logprobs`.

The prompt after its first token is said as a recorded answer, so the tokens' log probabilities come from the steps
that every other answer comes from, one token a step: hence the bound. A first token has no log probability.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from starlette.requests import Request

from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.engine import wire
from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.generation import Choice, Origin
from tokenspeed.serve.service import Service
from tokenspeed.serve.sse import abort_on_disconnect
from tokenspeed.text.output import OutputOptions

ECHO_TOKENS_MAX: Final = 4096


async def prompt_logprobs(
    request: Request,
    service: Service,
    prompts: list[list[int]],
    params: SamplingParams,
    origin: Origin,
    *,
    answer_id: str,
) -> list[list[TokenLogprob]]:
    """Of each prompt's tokens but the first, in order; `RequestError` for a prompt that is too long."""
    for ids in prompts:
        if len(ids) > ECHO_TOKENS_MAX:
            raise out_of_range(
                "logprobs with echo",
                f"of {len(ids)} tokens",
                f"of at most {ECHO_TOKENS_MAX}",
                param="logprobs",
            )
    said = [index for index, ids in enumerate(prompts) if len(ids) > 1]
    choices = [
        Choice(prompts[index][:1], _saying(params, prompts[index][1:]), OutputOptions()) for index in said
    ]
    found: list[list[TokenLogprob]] = [[] for _ in prompts]
    if not choices:
        return found
    generation = service.generate(choices, origin, answer_id=answer_id, per_prompt=1)
    async with generation, abort_on_disconnect(request.receive, generation.abort):
        async for update in generation.updates():
            if update is not None:
                found[said[update.index]] += update.logprobs
    return found


def _saying(params: SamplingParams, ids: list[int]) -> SamplingParams:
    forced = wire.ids_bytes(np.array(ids))
    return msgspec.structs.replace(params, forced=forced, tokens_max=len(ids), tokens_min=0, stop_ids=())
