# SPDX-License-Identifier: MIT
"""Who may ask: a key, or loopback.

With a key, every route but /health, /ready and the page of /dashboard wants it, as `Authorization: Bearer
KEY` or `x-api-key: KEY`, compared in constant time. Without one the server listens on loopback only, unless
told otherwise (rule R5), and answers only to addresses and `localhost`: a page whose name was pointed at
loopback (DNS rebinding) is turned away.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenspeed.base.config import ServerConfig
from tokenspeed.base.errors import RequestError, SetupError
from tokenspeed.serve.errors import answer_of

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/dashboard"})  # the last is a page without data


def check_exposure(config: ServerConfig) -> None:
    """`SetupError` if the server would be open to others without a key."""
    if config.api_key == "":
        raise SetupError("--api-key is empty; give a key, or leave the option out")
    if config.api_key is None and not config.insecure and not _is_loopback(config.host):
        raise SetupError(
            f"--host {config.host} lets others in without a key; add --api-key KEY (or TOKENSPEED_API_KEY), "
            "or --insecure if that is meant"
        )


def guard(config: ServerConfig) -> list[Middleware]:
    """What stands before the routes."""
    if config.api_key is not None:
        return [Middleware(KeyCheck, key=config.api_key)]
    return [] if config.insecure else [Middleware(HostCheck)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class KeyCheck:
    """ASGI middleware that turns away requests without the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = RequestError(
            "a key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            code="invalid_api_key",
            status=401,
        )
        await answer_of(scope, error)(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)


class HostCheck:
    """ASGI middleware that turns away requests meant for another name than this machine's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_local_name(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        error = RequestError(
            "without a key this server answers to 127.0.0.1 and localhost only; start it with --api-key KEY, "
            "or with --insecure",
            code="unknown_host",
            status=403,
        )
        await answer_of(scope, error)(scope, receive, send)


def _is_local_name(host: str) -> bool:
    """An address, localhost, or nothing."""
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"
        return name == "localhost" or name.endswith(".localhost") or bool(ipaddress.ip_address(name).packed)
    except ValueError:
        return False
