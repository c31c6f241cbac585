# SPDX-License-Identifier: MIT
"""POST /v1/responses, and the answers that are kept: GET and DELETE /v1/responses/{id}.

In: a `ResponsesBody`. Out: a `response`, whole or as events. A prompt that does not fit is a 400; in a stream it is
`response.failed`, as clients know an overflow only there.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.errors import PromptTooLongError, RequestError
from tokenspeed.serve.answer import json_response, respond
from tokenspeed.serve.errors import refused
from tokenspeed.serve.reading import Asking, prompt_of, read
from tokenspeed.serve.responses.forms import wanted_of
from tokenspeed.serve.responses.request import RESPONSES
from tokenspeed.serve.responses.schema import ResponsesBody
from tokenspeed.serve.responses.store import Kept
from tokenspeed.serve.responses.writer import ResponsesWriter
from tokenspeed.serve.sampling import choices_of, completed
from tokenspeed.serve.service import Service
from tokenspeed.serve.sse import HEADERS
from tokenspeed.text.output import OutputOptions
from tokenspeed.text.tools.schema import ArgumentTypes

_ENCRYPTED: Final = "reasoning.encrypted_content"
_LOGPROBS: Final = "message.output_text.logprobs"


async def handle(request: Request, service: Service, data: bytes) -> Response:
    """Answer one request."""
    asking = read(request, service, data, RESPONSES)
    body = asking.body
    service.check_model(body.model)
    _check(body)
    wanted_of(body, asking.offers, in_reasoning=False)  # what is wrong is said before any work
    sampled = {"temperature": body.temperature, "top_p": body.top_p, "tokens_max": body.max_output_tokens}
    params = completed(service.text, sampled)
    prompt = await prompt_of(asking, service)
    wanted = wanted_of(body, asking.offers, in_reasoning=prompt.in_reasoning)
    constraint = await service.constraint(wanted)
    options = OutputOptions(
        dialect=service.text.dialect,
        in_reasoning=prompt.in_reasoning,
        calls=asking.tools is not None,
        types=ArgumentTypes(None if asking.tools is None else asking.tools.plain),
        one_call=not wanted.parallel,
    )

    def keep(answer_id: str, document: dict[str, Any]) -> None:
        if body.store is not False:
            output = [msgspec.json.encode(item) for item in document["output"]]
            items = b",".join([*filter(None, [_items_asked(asking, service)]), *output])
            service.responses.keep(answer_id, Kept(msgspec.json.encode(document), items, asking.origin.salt))

    writer = ResponsesWriter(
        _head(asking, service),
        {} if asking.tools is None else asking.tools.origins,
        len(prompt.ids),
        service.seal if _ENCRYPTED in (body.include or ()) else None,
        keep,
    )
    try:
        service.check_length(len(prompt.ids), "input")
    except PromptTooLongError as error:
        if not body.stream:
            raise
        service.note_error(error)
        told = writer.opening() + writer.failure(error)
        return Response(told, headers=HEADERS | writer.headers, media_type="text/event-stream")
    generation = service.generate(
        choices_of(prompt.ids, params, options, 1, constraint),
        asking.origin,
        answer_id=writer.answer_id,
        per_prompt=1,
        turn=prompt.turn,
    )
    return await respond(
        request, generation, writer, 1, stream=bool(body.stream), note_error=service.note_error
    )


def retrieve(request: Request, service: Service) -> Response:
    """One answer that was kept."""
    if request.query_params.get("stream") in ("true", "True", "1"):
        raise refused("stream", "an answer that was kept is given whole")
    kept = service.responses.get(request.path_params["id"])
    if kept is None:
        raise _unknown(request)
    return Response(kept.document, media_type="application/json")


def delete(request: Request, service: Service) -> Response:
    """Forget an answer."""
    if not service.responses.drop(request.path_params["id"]):
        raise _unknown(request)
    return json_response({"id": request.path_params["id"], "object": "response", "deleted": True})


def _unknown(request: Request) -> RequestError:
    return RequestError(
        f"no response {request.path_params['id'][:100]!r} is kept here", code="unknown_response", status=404
    )


def _check(body: ResponsesBody) -> None:
    """Refuse what this server does not do, by name."""
    if body.background:
        raise refused("background", "answers are made while the client waits; leave it out")
    if body.conversation is not None:
        raise refused("conversation", "not kept here; use previous_response_id, or send the items")
    if body.prompt is not None:
        raise refused("prompt", "templates of prompts are not kept here; send instructions and input")
    if body.top_logprobs or _LOGPROBS in (body.include or ()):
        raise refused("top_logprobs", "not on this route; use /v1/chat/completions")


def _head(asking: Asking[ResponsesBody], service: Service) -> dict[str, Any]:
    """What a `response` says of its request."""
    body = asking.body
    tools = (
        asking.asked.tools if asking.asked is not None else msgspec.json.encode(asking.raw.get("tools", []))
    )
    return {
        "model": service.model_name,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": msgspec.Raw(tools or b"[]"),
        "truncation": "disabled",
        "metadata": body.metadata or {},
        "usage": None,
    }


def _items_asked(asking: Asking[ResponsesBody], service: Service) -> bytes:
    """The request's own items and those before them, without the brackets."""
    asked = asking.asked
    if asked is not None:
        return asked.data[asked.begin + 1 : asked.end].strip()
    items = RESPONSES.documents(asking.body, asking.raw, service)
    return msgspec.json.encode(items)[1:-1]
