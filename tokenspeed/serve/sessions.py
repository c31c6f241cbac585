# SPDX-License-Identifier: MIT
"""Which session a request belongs to, and what its client hints about it: read off headers and fields (rule R13).

In: headers of the request, and the few fields of a body that name something. Out: a `Session`. Headers come
before fields, since proxies can set them, and what was made for this server before what was made for another.

| named by | client |
|---|---|
| `X-Session-ID`, `session_id` | anyone |
| `x-claude-code-session-id`, `metadata.user_id` | Claude Code |
| `thread-id` of the root `session-id` | Codex |
| `prompt_cache_key` | OpenAI's clients |

A session that nobody names is inferred by its prompt: see `serve.turns`. A name only groups requests: nothing is
shared or granted because of it. It reads no body and knows no dialect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tokenspeed.base.errors import SetupError

NAME_CHARACTERS_MAX: Final = 256
FLOOR_TPS_MAX: Final = 100_000.0
_TRUE: Final = frozenset({"1", "true", "yes"})
_USER_SESSION: Final = re.compile(r"_session_([0-9A-Za-z-]+)\Z")


@dataclass(frozen=True, slots=True)
class Session:
    """A session's name and its client's hints; every default means "nothing was said"."""

    id: str | None = None
    root: str | None = None
    """The session that began this one, where it is a part of another (a subagent's)."""
    priority: int = 0
    floor_mtps: int = 0
    """Thousandths of a token per second that each answer is wished to have."""
    final: bool = False
    """This is the session's last request: nothing need be kept for a next one."""
    retain_us: int = 0
    """How long the client may pause and still wishes to be remembered."""
    deadline_ms: int = 0
    """The answer is of no use if it is not begun so long after its request came; 0: it always is."""


def session_of(
    headers: Mapping[str, str],
    *,
    session_id: str | None = None,
    user_id: str | None = None,
    cache_key: str | None = None,
    priority: int = 0,
    floor_tps: float | None = None,
    final: bool | None = None,
    retain_us: int = 0,
    deadline_ms: int = 0,
) -> Session:
    """The session of a request; `user_id` is Anthropic's `metadata.user_id`, `cache_key` OpenAI's."""
    thread, root = headers.get("thread-id"), headers.get("session-id")
    names = (
        headers.get("x-session-id"),
        session_id,
        headers.get("x-claude-code-session-id"),
        thread or root,
        None if user_id is None else _session_in(user_id),
        cache_key,
    )
    name = next(filter(None, names), None)
    is_thread = thread is not None and name == thread and root not in (None, thread)
    floor = floor_tps if floor_tps is not None else _number(_own(headers, "floor"))
    return Session(
        id=None if name is None else name[:NAME_CHARACTERS_MAX],
        root=root[:NAME_CHARACTERS_MAX] if is_thread and root else None,
        priority=priority,
        floor_mtps=round(1000 * min(max(floor or 0.0, 0.0), FLOOR_TPS_MAX)),
        final=final if final is not None else (_own(headers, "final") or "").lower() in _TRUE,
        retain_us=retain_us,
        deadline_ms=deadline_ms,
    )


def tenant_floors(options: Iterable[str]) -> dict[bytes, int]:
    """Floors of `--tenant-floor SALT=TPS`, in thousandths of a token per second; `SetupError` for what is none."""
    floors: dict[bytes, int] = {}
    for option in options:
        salt, _, tps = option.rpartition("=")
        floor = _number(tps)
        if not salt or floor is None or not 0 <= floor <= FLOOR_TPS_MAX:
            raise SetupError(f"--tenant-floor {option!r}: write SALT=TPS, as in acme=70")
        floors[salt.encode()] = round(1000 * floor)
    return floors


def _own(headers: Mapping[str, str], hint: str) -> str | None:
    """A hint made for this server, or for any that knows sessions."""
    return headers.get(f"x-tokenspeed-{hint}") or headers.get(f"x-session-{hint}")


def _session_in(user_id: str) -> str:
    """Claude Code writes its session into the user's id, as a part of a name or of a JSON object."""
    found = _USER_SESSION.search(user_id)
    if found is not None:
        return found[1]
    if user_id.startswith("{"):
        try:
            told: Any = msgspec.json.decode(user_id, type=dict[str, Any]).get("session_id")
        except (msgspec.MsgspecError, RecursionError):
            return user_id
        return told if isinstance(told, str) and told else user_id
    return user_id


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value == value else None  # no NaN
