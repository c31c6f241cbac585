# SPDX-License-Identifier: MIT
"""Where a request comes from, as the engine wants to know it: the same fields and headers in every dialect."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request

from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.generation import Origin
from tokenspeed.serve.sessions import FLOOR_TPS_MAX, NAME_CHARACTERS_MAX, session_of

PRIORITY_MAX: Final = 2**31 - 1
DEADLINE_MS_MAX: Final = 86_400_000


class OriginBody(msgspec.Struct, kw_only=True):
    """Fields of every generating body, beyond what its dialect knows."""

    cache_salt: str | None = None
    session_id: str | None = None
    priority: int | None = None
    floor_tps: float | None = None
    final: bool | None = None
    deadline_ms: int | None = None


def origin_of(
    request: Request,
    body: OriginBody,
    *,
    user_id: str | None = None,
    cache_key: str | None = None,
    retain_us: int = 0,
) -> Origin:
    """Headers and fields together (rule R13); `RequestError` for values that cannot be used."""
    priority, floor_tps = body.priority or 0, body.floor_tps
    if abs(priority) > PRIORITY_MAX:
        raise out_of_range("priority", priority, f"in -{PRIORITY_MAX}..{PRIORITY_MAX}")
    if floor_tps is not None and not 0 <= floor_tps <= FLOOR_TPS_MAX:
        raise out_of_range("floor_tps", floor_tps, f"in 0..{FLOOR_TPS_MAX:g}")
    deadline_ms = body.deadline_ms
    if deadline_ms is not None and not 0 < deadline_ms <= DEADLINE_MS_MAX:
        raise out_of_range("deadline_ms", deadline_ms, f"in 1..{DEADLINE_MS_MAX}")
    session = session_of(
        request.headers,
        session_id=_name("session_id", body.session_id),
        user_id=user_id,
        cache_key=_name("prompt_cache_key", cache_key),
        priority=priority,
        floor_tps=floor_tps,
        final=body.final,
        retain_us=retain_us,
        deadline_ms=deadline_ms or 0,
    )
    return Origin(
        salt=(_name("cache_salt", body.cache_salt) or "").encode(),
        session=session,
        received_us=request.state.received_us,
        traceparent=request.headers.get("traceparent", "")[:NAME_CHARACTERS_MAX] or None,
    )


def _name(param: str, name: str | None) -> str | None:
    if name is not None and len(name) > NAME_CHARACTERS_MAX:
        raise out_of_range(param, f"a string of {len(name)} characters", f"of at most {NAME_CHARACTERS_MAX}")
    return name
