# SPDX-License-Identifier: MIT
"""The tree of errors: who can fix it decides the branch, and the branch decides the answer.

    TokenSpeedError
    |- RequestError      the caller can fix it: HTTP 4xx
    |  `- PromptTooLongError   by a shorter prompt
    |- CapacityError     nobody did wrong, try later: HTTP 429 or 503 with Retry-After
    |- SetupError        the operator can fix it, before serving: exit code 2, one line, no traceback
    `- EngineDeadError   the core process is gone: every stream ends with it, /health fails

A message says what happened, the values, and what would work. It never holds prompt text, addresses or host paths
of other users.
"""

from __future__ import annotations


class TokenSpeedError(Exception):
    """Root of every error the project raises on purpose."""


class RequestError(TokenSpeedError):
    """A request the caller can correct.

    `code` is the machine-readable name (`invalid_value`, `context_length_exceeded`, ...), `param` the field at fault
    in the caller's own spelling, `status` an HTTP status in 400..499.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.status = status


class PromptTooLongError(RequestError):
    """A prompt of `prompt_tokens` where at most `tokens_max` fit; each API dialect has its own words for it."""

    def __init__(self, prompt_tokens: int, tokens_max: int, *, param: str = "prompt") -> None:
        super().__init__(
            f"prompt is too long: {prompt_tokens} tokens > {tokens_max} maximum",
            code="context_length_exceeded",
            param=param,
        )
        self.prompt_tokens = prompt_tokens
        self.tokens_max = tokens_max


class CapacityError(TokenSpeedError):
    """The request is fine, the engine is full; `retry_after_s` is the wait it advises, in seconds."""

    def __init__(self, message: str, *, retry_after_s: int, status: int = 429) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.status = status


class SetupError(TokenSpeedError):
    """The engine cannot start as configured; the message names the setting and what would work."""


class EngineDeadError(TokenSpeedError):
    """The core process ended while requests were open, or before one could be sent."""
