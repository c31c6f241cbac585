# SPDX-License-Identifier: MIT
"""A session seen from outside: `GET /v1/sessions/{id}` says what it has used, `DELETE` that it is over.

In: the name its requests gave, and `X-Cache-Salt` where they gave a salt: a session is known within its salt only.
Out: its ledger in plain sums. Device time is measured: each step's is divided among its rows, so that the ledgers of
all sessions sum to it. Knows no dialect.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.errors import RequestError
from tokenspeed.serve.answer import json_response
from tokenspeed.serve.service import Service
from tokenspeed.serve.sessions import NAME_CHARACTERS_MAX


async def show(request: Request, service: Service) -> Response:
    """What a session has used so far; 404 where it is not remembered."""
    salt, name = _named(request)
    account = await service.engine.session(salt, name)
    if account is None:
        raise RequestError(
            f"no session {name[:100]!r} is remembered", code="session_not_found", param="id", status=404
        )
    block_s = [account.block_tokens * each / 1e6 for each in account.block_us]
    return json_response(
        {
            "id": name,
            "object": "session",
            "admitted": account.admitted,
            "requests": account.requests,
            "requests_open": account.requests_live,
            "device_ms": {"prefill": account.prefill_ns / 1e6, "decode": account.decode_ns / 1e6},
            "queue_ms": account.queue_us / 1e3,
            "tokens": {
                "prompt": account.tokens_prompt,
                "cached": account.tokens_cached,
                "computed": account.tokens_computed,
                "output": account.tokens_output,
            },
            "kv_token_s": dict(zip(("device", "host", "disk"), block_s, strict=True)),
        }
    )


def close(request: Request, service: Service) -> Response:
    """The session is over; harmless where it is not known."""
    salt, name = _named(request)
    service.engine.close_session(salt, name)
    return json_response({"id": name, "object": "session.deleted", "deleted": True})


def _named(request: Request) -> tuple[bytes, str]:
    name: str = request.path_params["id"]
    if not name or len(name) > NAME_CHARACTERS_MAX:
        raise RequestError(
            f"a session's name has 1 to {NAME_CHARACTERS_MAX} characters", code="invalid_value", param="id"
        )
    return request.headers.get("x-cache-salt", "").encode(), name
