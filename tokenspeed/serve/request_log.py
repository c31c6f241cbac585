# SPDX-License-Identifier: MIT
"""`--log-requests DIR`: each request body as it came, in a file that can be sent again.

The only place that keeps prompt text, and only when asked (rule R12). Files are readable by their owner
alone. A write that fails (a full disk) is logged once and never fails the request.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from pathlib import Path

from tokenspeed.base.errors import SetupError
from tokenspeed.base.log import get_logger

_log = get_logger("serve")


class RequestLog:
    """Writes bodies to `DIR/<unix ms>-<number>-<route>.json`."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SetupError(f"--log-requests {directory}: {error.strerror}") from error
        self._directory = directory
        self._numbers = itertools.count(1)
        self._failed = False

    async def write(self, path: str, body: bytes) -> None:
        """Keep one body; `path` is the route it was sent to."""
        route = path.strip("/").replace("/", "-")
        name = f"{int(time.time() * 1000)}-{next(self._numbers)}-{route}.json"
        try:
            await asyncio.to_thread(_write, self._directory / name, body)
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.error("requests are not being kept: %s", error.strerror)


def _write(path: Path, body: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(body)
