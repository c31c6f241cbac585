# SPDX-License-Identifier: MIT
"""Errors as the OpenAI dialect words them.

In: an exception. Out: an HTTP status, headers and a body `{"error": {message, type, param, code}}`, as an
answer of its own or as an event inside a stream. Messages never hold prompt text, addresses or paths; an
exception that is not ours says nothing but "internal error" to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tokenspeed.base.errors import CapacityError, EngineDeadError, RequestError, TokenSpeedError

DEAD_RETRY_S: Final = 5
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
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
    """One error, ready to be sent."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> ApiError:
        match error:
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

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Response(
            msgspec.json.encode(self.body()), self.status, headers=self.headers, media_type="application/json"
        )


def refused(name: str, reason: str) -> RequestError:
    """A field this server understands and does not offer."""
    return RequestError(f"{name}: {reason}", code="unsupported_parameter", param=name)


def out_of_range(name: str, value: object, wanted: str, *, param: str | None = None) -> RequestError:
    """A value that cannot be used; `param` is the field, where `name` says more than the field's name."""
    return RequestError(f"{name} is {value}; it must be {wanted}", code="invalid_value", param=param or name)
