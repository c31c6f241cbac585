# SPDX-License-Identifier: MIT
"""Server-sent events, and noticing that the reader has gone.

`EventStream` sends its headers at once (rule R1), then frames as they come, and always a terminal frame (rule
R2): when the frames raise, what the dialect says of the error. A client that leaves aborts what it asked for
(rule R9). Knows no dialect: frames are bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokenspeed.base.errors import TokenSpeedError
from tokenspeed.base.log import get_logger
from tokenspeed.serve.generation import Generation

_log = get_logger("serve")
encode = msgspec.json.Encoder().encode
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def frame(event: Any) -> bytes:
    """One `data:` event."""
    return b"data: " + encode(event) + b"\n\n"


def named_frame(event: dict[str, Any]) -> bytes:
    """One event named by its own `type`."""
    return b"event: " + event["type"].encode() + b"\ndata: " + encode(event) + b"\n\n"


class EventStream(Response):
    """Streams `frames` of a generation; owns the generation."""

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        frames: AsyncIterator[bytes],
        failure: Callable[[BaseException], bytes],
        headers: dict[str, str],
    ) -> None:
        super().__init__(None, headers=HEADERS | headers)
        del self.headers["content-length"]
        self._generation = generation
        self._frames = frames
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation, abort_on_disconnect(receive, self._generation.abort):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for data in self._frames:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except TokenSpeedError as error:
                await self._send_error(send, error)
            except Exception as error:  # noqa: BLE001  (a defect; the stream must still end with a terminal event)
                _log.exception("a stream failed")
                await self._send_error(send, error)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_error(self, send: Send, error: Exception) -> None:
        await send({"type": "http.response.body", "body": self._failure(error), "more_body": True})


@contextlib.asynccontextmanager
async def abort_on_disconnect(receive: Receive, abort: Callable[[], None]) -> AsyncGenerator[None]:
    """Call `abort` if the client leaves inside the block. The request's body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        abort()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
