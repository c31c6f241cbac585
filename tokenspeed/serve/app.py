# SPDX-License-Identifier: MIT
"""Routes, and the frame around every handler: body in, errors out.

In: a `Service`. Out: an ASGI application. A handler gets the request, the service and the body's bytes; what
it raises becomes the dialect's error. Holds no state of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokenspeed import __version__
from tokenspeed.base.errors import RequestError, TokenSpeedError
from tokenspeed.base.log import get_logger
from tokenspeed.obs.metrics import CONTENT_TYPE
from tokenspeed.serve import dashboard, debug, session_routes
from tokenspeed.serve.answer import json_response
from tokenspeed.serve.anthropic import messages, models
from tokenspeed.serve.anthropic.schema import CountBody, MessagesBody
from tokenspeed.serve.auth import guard
from tokenspeed.serve.errors import ApiError, answer_of, speaks_anthropic
from tokenspeed.serve.openai import chat, completions, tokens
from tokenspeed.serve.openai.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tokenspeed.serve.openapi import Operation, document
from tokenspeed.serve.responses import create
from tokenspeed.serve.responses.schema import ResponsesBody
from tokenspeed.serve.service import Service

_log = get_logger("serve")
_NEAR: Final = 0.75  # a slip of the path; /v1/messages is another API, no slip of /v1/models
_RESPONSE: Final = "/v1/responses/{id}"
_SESSION: Final = "/v1/sessions/{id:path}"
_Handler = Callable[[Request, Service, bytes], Awaitable[Response]]
_Look = Callable[[Request, Service], Response | Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Post:
    """A route that takes a body."""

    handler: _Handler
    operation: Operation


POSTS: Final = {
    "/v1/chat/completions": Post(
        chat.handle, Operation.generating("Messages in, a message or its deltas out", ChatBody)
    ),
    "/v1/completions": Post(
        completions.handle, Operation.generating("Text or token ids continued", CompletionBody)
    ),
    "/v1/messages": Post(messages.handle, Operation.generating("Anthropic Messages", MessagesBody)),
    "/v1/messages/count_tokens": Post(
        messages.count_tokens, Operation("Length of the prompt that messages make", CountBody)
    ),
    "/v1/responses": Post(create.handle, Operation.generating("OpenAI Responses", ResponsesBody)),
    "/tokenize": Post(
        tokens.tokenize, Operation("Ids of a text, or of the prompt of messages", TokenizeBody)
    ),
    "/detokenize": Post(tokens.detokenize, Operation("Text of ids", DetokenizeBody)),
}


@dataclass(frozen=True, slots=True)
class Get:
    """A route that takes none; `method` may be another than GET."""

    handler: _Look
    operation: Operation
    method: str = "GET"


def _gets() -> list[tuple[str, Get]]:
    text, page = ("text/plain",), ("text/html",)
    return [
        ("/v1/models", Get(_models, Operation("The served model"))),
        ("/v1/models/{model:path}", Get(_model, Operation("The served model, by its id"))),
        (_RESPONSE, Get(create.retrieve, Operation("An answer that was kept"))),
        (_RESPONSE, Get(create.delete, Operation("Forget an answer"), "DELETE")),
        (_SESSION, Get(session_routes.show, Operation("What a session has used"))),
        (_SESSION, Get(session_routes.close, Operation("End a session"), "DELETE")),
        ("/health", Get(_health, Operation("Whether the core reports"))),
        ("/ready", Get(_ready, Operation("Whether new requests are welcome"))),
        ("/metrics", Get(_metrics, Operation("Series in Prometheus' text format", media=text))),
        ("/version", Get(_version, Operation("The version"))),
        ("/openapi.json", Get(_openapi, Operation("This document"))),
        ("/dashboard", Get(dashboard.page, Operation("A page that shows this server at work", media=page))),
        ("/dashboard/data", Get(dashboard.data, Operation("What the page shows"))),
        ("/debug/requests", Get(debug.listing, Operation("Open requests and those that ended last"))),
        ("/debug/requests/{id}", Get(debug.timeline, Operation("One request, moment by moment"))),
    ]


@cache
def openapi() -> bytes:
    """The OpenAPI document of all routes."""
    operations = {("post", path): post.operation for path, post in POSTS.items()}
    operations |= {(get.method.lower(), path): get.operation for path, get in _gets()}
    return document(operations)


def build(service: Service) -> Starlette:
    """The application of one service."""
    gets = _gets()
    routes = [Route(path, _with_service(service, get.handler), methods=[get.method]) for path, get in gets]
    routes += [
        Route(path, _with_body(service, post.handler), methods=["POST"]) for path, post in POSTS.items()
    ]
    app = Starlette(
        routes=routes,
        middleware=guard(service.config.server),
        exception_handlers={
            TokenSpeedError: _noting(service),
            HTTPException: _Unrouted(list(dict.fromkeys([*(path for path, _ in gets), *POSTS]))),
            Exception: _noting(service),
        },
    )
    app.router.redirect_slashes = False
    return app


def _with_service(service: Service, handler: _Look) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        answer = handler(request, service)
        return answer if isinstance(answer, Response) else await answer

    return endpoint


def _with_body(service: Service, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        request.state.received_us = service.engine.clock.now_us()
        data = await service.bodies.read(request)
        if service.request_log is not None:
            await service.request_log.write(request.url.path, data)
        return await handler(request, service, data)

    return endpoint


def _models(request: Request, service: Service) -> Response:
    if speaks_anthropic(request.url.path, request.headers):
        return json_response(models.listing(service))
    return json_response({"object": "list", "data": [_model_card(service)]})


def _model(request: Request, service: Service) -> Response:
    service.check_model(request.path_params["model"])
    if speaks_anthropic(request.url.path, request.headers):
        return json_response(models.card(service))
    return json_response(_model_card(service))


def _model_card(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.started_s,
        "owned_by": "tokenspeed",
        "max_model_len": service.context_tokens_max,
        "block_tokens": service.engine.ready.block_tokens,
        "vocab_size": service.engine.ready.vocab_size,
        "device": service.engine.ready.device,
    }


def _health(request: Request, service: Service) -> Response:
    """200 only while the core reports: it does so twice a second, at work or idle."""
    if service.engine.healthy:
        return json_response({"status": "ok"})
    return answer_of(request.scope, ApiError(503, "the engine has not reported lately", "unhealthy"))


def _ready(request: Request, service: Service) -> Response:
    """200 while new requests are welcome."""
    if service.engine.healthy and not service.draining:
        return json_response({"status": "ready"})
    reason = "the server is shutting down" if service.draining else "the engine has not reported lately"
    error = ApiError(503, reason, "not_ready", headers={"Retry-After": "1"})
    return answer_of(request.scope, error)


def _metrics(request: Request, service: Service) -> Response:
    return Response(service.engine.metrics.render(), headers={"content-type": CONTENT_TYPE})


def _version(request: Request, service: Service) -> Response:
    return json_response({"version": __version__})


def _openapi(request: Request, service: Service) -> Response:
    return Response(openapi(), media_type="application/json")


def _noting(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def on_error(request: Request, error: Exception) -> Response:
        service.note_error(error)
        return answer_of(request.scope, error)

    return on_error


class _Unrouted:
    """Answers for paths and methods that are not served: says which are."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    async def __call__(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            verb = "POST" if "POST" in allowed else "GET"
            message = f"{request.method} {path[:100]} is not served; use {verb}"
            wrong = ApiError(405, message, "method_not_allowed", headers=dict(error.headers or {}))
            return answer_of(request.scope, wrong)
        if error.status_code == 404:
            near = difflib.get_close_matches(path, self._paths, n=1, cutoff=_NEAR)
            hint = f"did you mean {near[0]}?" if near else f"served: {', '.join(self._paths)}"
            unknown = RequestError(f"no route {path[:100]!r}; {hint}", code="unknown_route", status=404)
            return answer_of(request.scope, unknown)
        return answer_of(request.scope, error)
