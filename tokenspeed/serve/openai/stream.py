# SPDX-License-Identifier: MIT
"""What chat completions and completions share of a stream: frames without names, an end that says so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from tokenspeed.serve.errors import ApiError
from tokenspeed.serve.sse import frame

DONE: Final = b"data: [DONE]\n\n"


def frames(events: Iterable[dict[str, Any]]) -> bytes:
    """Events in a row."""
    return b"".join(map(frame, events))


def failure(error: BaseException) -> bytes:
    """The end of a stream that failed (rule R2)."""
    return frame(ApiError.of(error).openai()) + DONE
