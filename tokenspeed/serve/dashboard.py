# SPDX-License-Identifier: MIT
"""GET /dashboard, a page about this server, and GET /dashboard/data, what the page shows.

In: the engine's history, timelines and latest sample. Out: one HTML file without any reference to elsewhere,
and a JSON document the page asks for once a second. The page itself holds no data, so it needs no key; the
document does when one is set. Holds no prompt text: requests are ids, sessions are hashes, errors are codes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed import __version__
from tokenspeed.obs.history import Second
from tokenspeed.obs.requests import RequestTimeline
from tokenspeed.obs.sample import CoreSample
from tokenspeed.obs.timeline import PHASES
from tokenspeed.serve.answer import json_response
from tokenspeed.serve.debug import summary
from tokenspeed.serve.service import Service

PAGE: Final = Path(__file__).with_name("dashboard.html").read_text(encoding="utf-8")
WINDOW_S: Final = 300
"""What the charts show."""
LIVE_US: Final = 10_000_000
"""An answer counts as one user's while its last token is no older."""
MINUTE_S: Final = 60
SMOOTH_S: Final = 5
REQUESTS_SHOWN: Final = 24
SESSIONS_SHOWN: Final = 12


def _policy(page: str) -> str:
    """A content security policy under which exactly the page's own script and style run."""
    sources: dict[str, str] = {}
    for kind in ("script", "style"):
        bodies = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
        sources[kind] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_HEADERS: Final = {"Content-Security-Policy": _policy(PAGE), "Cache-Control": "no-cache"}


def page(request: Request, service: Service) -> Response:
    """The page."""
    return Response(PAGE, headers=_HEADERS, media_type="text/html; charset=utf-8")


def data(request: Request, service: Service) -> Response:
    """What the page shows now."""
    return json_response(document(service))


def document(service: Service) -> dict[str, Any]:
    """All of it, from one moment of the engine's clock."""
    engine = service.engine
    now_us = engine.clock.now_us()
    timelines = list(engine.requests)
    seconds = engine.history.last(now_us, WINDOW_S)
    core = None if engine.stats is None else engine.stats.core
    return {
        "server": {
            "model": service.model_name,
            "version": __version__,
            "healthy": engine.healthy,
            "draining": service.draining,
            "context_tokens_max": service.context_tokens_max,
            "slots_max": engine.ready.slots_max,
            "block_tokens": engine.ready.block_tokens,
            "choices": engine.ready.choices,
        },
        "now": _now(timelines, seconds, core, now_us),
        "blocks": None if core is None else _blocks(core),
        "seconds": _columns(seconds, now_us),
        "requests": [summary(one, now_us) for one in timelines[:REQUESTS_SHOWN]],
        "sessions": _sessions(timelines, now_us),
        "errors": [
            {
                "age_s": (now_us - note.at_us) / 1e6,
                "status": note.status,
                "code": note.code,
                "param": note.param,
            }
            for note in reversed(service.errors)
        ],
    }


def _now(
    timelines: list[RequestTimeline], seconds: list[Second], core: CoreSample | None, now_us: int
) -> dict[str, Any]:
    """The figures of this moment, and of the last minute's whole seconds."""
    live = [one for one in timelines if one.tokens_per_s is not None and now_us - one.last_token_us < LIVE_US]
    rates = sorted(one.tokens_per_s for one in live if one.tokens_per_s is not None)
    minute = [second for second in seconds if second.at_s >= now_us // 1_000_000 - MINUTE_S]
    prompt_tokens = sum(second.prompt_tokens for second in minute)
    first_tokens = sum(second.first_tokens for second in minute)
    return {
        "answers": len(rates),
        "tokens_per_s_user": _pooled_rate(live),
        "tokens_per_s_user_p10": rates[len(rates) // 10] if rates else None,
        "tokens_per_s_answers": rates,
        "tokens_per_minute": sum(second.tokens for second in minute),
        "prompt_tokens_per_minute": prompt_tokens,
        "hit_rate": _share(sum(second.cached_tokens for second in minute), prompt_tokens),
        "hit_rate_total": None if core is None else _share(core.prompt_tokens_cached, core.prompt_tokens),
        "first_token_ms": _share(sum(second.first_token_us_sum for second in minute) / 1e3, first_tokens),
        "requests_open": sum(one.finish is None for one in timelines),
        "running": None if core is None else core.running,
        "waiting": None if core is None else core.waiting,
        "retractions": None if core is None else core.retractions,
        "faults": None if core is None else core.faults,
    }


def _blocks(core: CoreSample) -> dict[str, int]:
    """Every block of the pool in exactly one state."""
    idle = core.blocks_free + core.blocks_cached
    return {
        "total": core.blocks_total,
        "leased": core.blocks_leased,
        "shared": core.blocks_total - idle - core.blocks_leased - core.blocks_in_flight,
        "in_flight": core.blocks_in_flight,
        "cached": core.blocks_cached,
        "free": core.blocks_free,
    }


def _columns(seconds: list[Second], now_us: int) -> dict[str, list[float | None]]:
    """One value for each of the last `WINDOW_S` whole seconds, oldest first; null where there is none."""
    first_s = now_us // 1_000_000 - WINDOW_S
    columns: dict[str, list[float | None]] = {
        name: [None] * WINDOW_S
        for name in ("tokens", "tokens_per_s_user", "first_token_ms", "hit_rate", "running", "waiting")
    }
    columns |= {f"blocks_{name}": [None] * WINDOW_S for name in ("leased", "shared", "cached")}
    columns |= {f"step_ms_{name}": [None] * WINDOW_S for name in PHASES}
    before: CoreSample | None = None
    for index, second in enumerate(seconds):
        row: dict[str, float | None] = {
            "tokens": second.tokens,
            "tokens_per_s_user": _user_rate(seconds[: index + 1]),
            "first_token_ms": _share(second.first_token_us_sum / 1e3, second.first_tokens),
            "hit_rate": _share(second.cached_tokens, second.prompt_tokens),
        }
        core = second.core
        if core is not None:
            blocks = _blocks(core)
            row |= {"running": core.running, "waiting": core.waiting}
            row |= {f"blocks_{name}": blocks[name] for name in ("leased", "shared", "cached")}
            row |= _split(before, core)
            before = core
        for name, value in row.items():
            columns[name][second.at_s - first_s] = value
    return columns


def _user_rate(seconds: list[Second]) -> float | None:
    """Tokens per second of one user in the last of these seconds, smoothed over `SMOOTH_S`; None if nobody's came."""
    last = seconds[-1]
    near = [second for second in seconds[-SMOOTH_S:] if second.at_s > last.at_s - SMOOTH_S]
    waited_us = sum(second.gap_us_sum for second in near)
    return _share(sum(second.gaps for second in near) * 1e6, waited_us) if last.gaps else None


def _split(before: CoreSample | None, core: CoreSample) -> dict[str, float | None]:
    """The mean step between two samples, by what the loop did, in milliseconds."""
    if before is None:
        return {}
    steps = sum(core.step_us_counts) - sum(before.step_us_counts)
    spent = zip(PHASES, before.phase_us_sums, core.phase_us_sums, strict=True)
    return {f"step_ms_{phase}": _share((later - earlier) / 1e3, steps) for phase, earlier, later in spent}


def _sessions(timelines: Iterable[RequestTimeline], now_us: int) -> list[dict[str, Any]]:
    """The sessions of recent requests, latest first; requests that name none are in none."""
    members: dict[str, list[RequestTimeline]] = {}
    for one in timelines:
        if one.session is not None:
            members.setdefault(one.session, []).append(one)
    found = [_session(name, requests, now_us) for name, requests in members.items()]
    return sorted(found, key=lambda session: session["age_s"])[:SESSIONS_SHOWN]


def _session(name: str, requests: list[RequestTimeline], now_us: int) -> dict[str, Any]:
    started = [one for one in requests if one.first_step_us >= 0]
    prompt_tokens = sum(one.prompt_tokens for one in started)
    cached_tokens = sum(one.cached_tokens for one in started)
    return {
        "session": name,
        "requests": len(requests),
        "open": sum(one.finish is None for one in requests),
        "age_s": min(now_us - max(one.received_us, one.last_token_us) for one in requests) / 1e6,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "output_tokens": sum(one.output_tokens for one in requests),
        "hit_rate": _share(cached_tokens, prompt_tokens),
        "tokens_per_s": _pooled_rate(requests),
    }


def _pooled_rate(requests: Iterable[RequestTimeline]) -> float | None:
    """Tokens per second after the first, over all of these: two that came together are no 10,000 a second."""
    timed = [one for one in requests if one.output_tokens > 1]
    waited_us = sum(one.last_token_us - one.first_token_us for one in timed)
    return _share(sum(one.output_tokens - 1 for one in timed) * 1e6, waited_us)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
