# SPDX-License-Identifier: MIT
"""Errors as the dialects word them.

In: an exception. Out: an HTTP status, headers and a body, as an answer of its own or for an event inside a
stream: `{"error": {message, type, param, code}}` of OpenAI, `{"type": "error", "error": {type, message},
"request_id"}` of Anthropic. The path decides the dialect, or the header `anthropic-version`. Messages never hold
prompt text, addresses or paths; an exception that is not ours says nothing but "internal error" to the caller.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from tokenspeed.base.errors import (
    CapacityError,
    EngineDeadError,
    PromptTooLongError,
    RequestError,
    TokenSpeedError,
)

DEAD_RETRY_S: Final = 5
_OVERLOADED: Final = 529  # what Anthropic answers where others answer 503
_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    _OVERLOADED: "overloaded_error",
}

# The engine's own names of sampling fields, and the API's.
_API_NAMES: Final = {
    "presence": "presence_penalty",
    "frequency": "frequency_penalty",
    "repetition": "repetition_penalty",
    "tokens_max": "max_tokens",
    "tokens_min": "min_tokens",
    "stop_ids": "stop_token_ids",
    "forced": "forced_token_ids",
}


class GenerationError(TokenSpeedError):
    """One answer could not be finished, through no fault of the caller; others were not affected."""


@dataclass(frozen=True, slots=True)
class ErrorNote:
    """What is remembered of an error: no message, for it may quote the request."""

    at_us: int
    status: int
    code: str
    param: str | None


@dataclass(frozen=True, slots=True)
class ApiError:
    """One error, ready to be said in any dialect; the message in OpenAI's words."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> ApiError:
        match error:
            case PromptTooLongError():
                message = (
                    f"This model's maximum context length is {error.tokens_max + 1} tokens. However, your "
                    f"{error.param} resulted in {error.prompt_tokens} tokens. Please reduce the length of the "
                    f"{error.param}."
                )
                return cls(error.status, message, error.code, error.param)
            case RequestError():
                name = error.param or ""
                param = _API_NAMES.get(name, error.param)
                message = error.message.replace(name, str(param), 1) if name in _API_NAMES else error.message
                return cls(error.status, message, error.code, param)
            case CapacityError():
                headers = {"Retry-After": str(error.retry_after_s)}
                code = "engine_full" if error.status == 429 else "unavailable"
                return cls(error.status, error.message, code, headers=headers)
            case EngineDeadError():
                headers = {"Retry-After": str(DEAD_RETRY_S)}
                return cls(
                    503, "the engine stopped; the operator has to restart it", "engine_dead", headers=headers
                )
            case GenerationError():
                return cls(500, str(error), "generation_failed")
            case HTTPException():
                return cls(error.status_code, error.detail, "http_error", headers=dict(error.headers or {}))
            case _:
                return cls(500, "internal error; the server's log has the details", "internal_error")

    def openai(self) -> dict[str, Any]:
        kind = (
            "server_error" if self.status >= 500 else _OPENAI_TYPES.get(self.status, "invalid_request_error")
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self, request_id: str) -> dict[str, Any]:
        """The code travels along: clients of that dialect ignore it, people do not."""
        status = _OVERLOADED if self.status == 503 else self.status
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        error = {"type": kind, "message": self.message, "code": self.code}
        return {"type": "error", "error": error, "request_id": request_id}


def speaks_anthropic(path: str, headers: Mapping[str, str]) -> bool:
    """Whether a request is in the dialect of Anthropic: only its clients name a version in a header."""
    return path.startswith("/v1/messages") or "anthropic-version" in headers


def answer_of(scope: Scope, error: BaseException | ApiError) -> Response:
    """An error as the answer to a request, in the request's own dialect."""
    if not speaks_anthropic(scope["path"], Headers(scope=scope)):
        said = error if isinstance(error, ApiError) else ApiError.of(error)
        return _response(said.openai(), said.status, said.headers)
    said = error if isinstance(error, ApiError) else anthropic_error(error)
    request_id = new_request_id()
    status = _OVERLOADED if said.status == 503 else said.status
    return _response(said.anthropic(request_id), status, said.headers | {"request-id": request_id})


def anthropic_error(error: BaseException) -> ApiError:
    """An error in Anthropic's words: clients compact a session on reading just these (rule R3)."""
    said = ApiError.of(error)
    return replace(said, message=error.message) if isinstance(error, PromptTooLongError) else said


def new_request_id() -> str:
    """What an Anthropic client quotes when it complains."""
    return f"req_{secrets.token_hex(12)}"


def _response(body: dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, headers=headers, media_type="application/json")


def refused(name: str, reason: str) -> RequestError:
    """A field this server understands and does not offer."""
    return RequestError(f"{name}: {reason}", code="unsupported_parameter", param=name)


def out_of_range(name: str, value: object, wanted: str, *, param: str | None = None) -> RequestError:
    """A value that cannot be used; `param` is the field, where `name` says more than the field's name."""
    return RequestError(f"{name} is {value}; it must be {wanted}", code="invalid_value", param=param or name)
