# SPDX-License-Identifier: MIT
"""One HTTP/1.1 connection that stamps the bytes of an answer the moment they arrive.

In: an origin, a clock, bodies. Out: a `Reply` of raw pieces, each with its arrival in microseconds; `events`
cuts server-sent events out of them later, so that no parsing happens between two tokens. httptools parses (it
is what the server already depends on): a general client would bring a second HTTP stack and hide the moment of
arrival behind its buffers. `sent_us` is taken once the connection is open: the times are the server's, not the
network's set-up. It retries nothing that reached the server, follows no redirects and keeps no pool: each
session holds its own connection, as an agent does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

from tokenspeed.base.clock import Clock
from tokenspeed.base.errors import SetupError

DATA: Final = b"data:"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens. `prefix` is the path before `/v1`."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Read `http[s]://host[:port][/prefix][/v1]`."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SetupError(f"--url {url!r}: expected http://HOST:PORT")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, prefix)


@dataclass(slots=True)
class Reply:
    """What came back. `status` 0 means nothing did; `error` says why an answer is not whole."""

    sent_us: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    pieces: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    error: str | None = None

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time. `watch` is called with each piece of a body."""

    def __init__(
        self,
        origin: Origin,
        clock: Clock,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        watch: Callable[[bytes], None] | None = None,
    ) -> None:
        self._origin = origin
        self._clock = clock
        self._timeout_s = timeout_s
        self._watch = watch
        self._headers = {"Host": f"{origin.host}:{origin.port}", "Accept": "*/*", **(headers or {})}
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reply = Reply()
        self._done: asyncio.Future[None] | None = None
        self._now_us = 0

    async def exchange(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and wait for its whole answer; a failure is a `Reply` with an error, never raised.

        `headers` are of this request, beside those of the connection.
        """
        reused = self._transport is not None
        reply = await self._once(method, path, body, headers or {})
        if reused and reply.status == 0 and reply.error == _CLOSED:
            # The server had closed an idle connection as we wrote: no byte was answered, none was lost.
            reply = await self._once(method, path, body, headers or {})
        return reply

    def close(self) -> None:
        """Close the connection; an exchange under way ends with an error."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _once(self, method: str, path: str, body: bytes, own: Mapping[str, str]) -> Reply:
        self._reply = reply = Reply()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._transport is None:
                    context = ssl.create_default_context() if self._origin.tls else None
                    await loop.create_connection(
                        lambda: self, self._origin.host, self._origin.port, ssl=context
                    )
                assert self._transport is not None
                self._parser = httptools.HttpResponseParser(self)
                self._done = loop.create_future()
                head = f"{method} {self._origin.prefix}{path} HTTP/1.1\r\n"
                headers = {**self._headers, **own, "Content-Length": str(len(body))}
                head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
                reply.sent_us = self._clock.now_us()
                self._transport.write(head.encode() + body)
                await self._done
        except TimeoutError:
            reply.error = f"no whole answer within {self._timeout_s:g} s"
            self.close()
        except OSError as error:
            reply.error = f"cannot connect: {error.strerror or error}"
        return reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now_us = self._clock.now_us()
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(_CLOSED)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._reply.pieces.append((self._now_us, body))
        if self._watch is not None:
            self._watch(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        keep = self._parser.should_keep_alive()
        self._end(None)
        if not keep:
            self.close()

    def _end(self, error: str | None) -> None:
        if self._done is not None and not self._done.done():
            self._reply.error = error
            self._done.set_result(None)


_CLOSED: Final = "the server closed the connection"


def events(pieces: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Cut server-sent events out of pieces: (arrival of the piece that completes it, data).

    Lines of one event are joined by a newline, comments and other fields are dropped.
    """
    data: list[bytes] = []
    rest = b""
    for at_us, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(DATA):
                data.append(line[len(DATA) :].removeprefix(b" "))
            elif not line and data:
                yield at_us, b"\n".join(data)
                data = []
