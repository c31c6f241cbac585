# SPDX-License-Identifier: MIT
"""GET /debug/requests and /debug/requests/{id}: what happened to recent requests, moment by moment.

In: the engine's `RequestTimeline`s. Out: documents of ids, counts and times; no text, no tokens, sessions as
hashes. Times are microseconds since the request was received, null where they have not come. Gaps between
`token_us` sum to `end` minus `first_token` of an answer that was finished.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.errors import RequestError
from tokenspeed.obs.requests import ENDED_MAX, TOKEN_TIMES_MAX, RequestTimeline
from tokenspeed.serve.answer import json_response
from tokenspeed.serve.service import Service

_NAME_CHARACTERS_MAX: Final = 64


def listing(request: Request, service: Service) -> Response:
    """All open requests, then the last that ended, without the times of their tokens."""
    now_us = service.engine.clock.now_us()
    return json_response({"requests": [summary(one, now_us) for one in service.engine.requests]})


def timeline(request: Request, service: Service) -> Response:
    """One request, or all choices of one answer; `RequestError` 404 once it is forgotten."""
    name: str = request.path_params["id"]
    found = service.engine.requests.find(name)
    if not found:
        raise RequestError(
            f"no request {name[:_NAME_CHARACTERS_MAX]!r}; open ones are known, and the {ENDED_MAX} that ended last",
            code="unknown_request",
            status=404,
        )
    now_us = service.engine.clock.now_us()
    return json_response({"id": name, "requests": [_whole(one, now_us) for one in found]})


def summary(one: RequestTimeline, now_us: int) -> dict[str, Any]:
    """A request in a dozen numbers."""
    moments = {
        "queued": one.queued_us,
        "first_step": one.first_step_us,
        "first_token": one.first_token_us,
        "last_token": one.last_token_us,
        "end": one.end_us,
    }
    return {
        "request_id": one.request_id,
        "id": one.answer_id or None,
        "session": one.session,
        "state": _state(one),
        "age_s": (now_us - one.received_us) / 1e6,
        "prompt_tokens": one.prompt_tokens,
        "cached_tokens": one.cached_tokens,
        "output_tokens": one.output_tokens,
        "retractions": one.retractions,
        "tokens_per_s": one.tokens_per_s,
        "finish": one.finish,
        "us": {name: one.since_received_us(time_us) for name, time_us in moments.items()},
    }


def _whole(one: RequestTimeline, now_us: int) -> dict[str, Any]:
    return summary(one, now_us) | {
        "token_us": [time_us - one.received_us for time_us in one.token_us],
        "token_us_max": TOKEN_TIMES_MAX,
    }


def _state(one: RequestTimeline) -> str:
    if one.finish is not None:
        return "ended"
    if one.output_tokens:
        return "decoding"
    return "queued" if one.first_step_us < 0 else "prefilling"
