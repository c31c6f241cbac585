# SPDX-License-Identifier: MIT
"""POST /v1/messages and /v1/messages/count_tokens: messages to a prompt, parts of an answer to content blocks.

In: a `MessagesBody`. Out: a `message`, whole or as events. Streams begin with `ping`, sent at admission (rule
R1); `message_start` waits for the first step, which knows how much of the prompt was cached. Reasoning is a
`thinking` block whose signature this server alone reads; with `display: omitted` it holds the reasoning.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.serve.answer import Collected, Usage, json_response, respond
from tokenspeed.serve.anthropic.forms import wanted_of
from tokenspeed.serve.anthropic.request import COUNT, MESSAGES
from tokenspeed.serve.anthropic.schema import MessagesBody
from tokenspeed.serve.errors import anthropic_error, new_request_id, refused
from tokenspeed.serve.generation import Update
from tokenspeed.serve.parts import Change, Closed, Grown, Opened, Part, Parts, parts_of
from tokenspeed.serve.reading import prompt_of, read
from tokenspeed.serve.sampling import checked_stops, choices_of, completed
from tokenspeed.serve.seal import Seal
from tokenspeed.serve.service import Service
from tokenspeed.serve.sse import encode, named_frame
from tokenspeed.text.output import OutputFinish, OutputOptions
from tokenspeed.text.tools.schema import ArgumentTypes

_PING: Final = named_frame({"type": "ping"})
_REASONS: Final[dict[OutputFinish, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}
_DELTAS: Final = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


async def handle(request: Request, service: Service, data: bytes) -> Response:
    """Answer one request."""
    asking = read(request, service, data, MESSAGES)
    body = asking.body
    assert isinstance(body, MessagesBody)
    service.check_model(body.model)
    if body.mcp_servers:
        raise refused("mcp_servers", "this server calls no other; connect the client to them")
    wanted_of(body, asking.offers, in_reasoning=False)  # what is wrong is said before any work
    params = completed(
        service.text,
        {
            "temperature": body.temperature,
            "top_k": body.top_k,
            "top_p": body.top_p,
            "tokens_max": body.max_tokens,
        },
    )
    stops = checked_stops(body.stop_sequences, "stop_sequences")
    prompt = await prompt_of(asking, service)
    service.check_length(len(prompt.ids), "messages")
    wanted = wanted_of(body, asking.offers, in_reasoning=prompt.in_reasoning)
    constraint = await service.constraint(wanted)
    options = OutputOptions(
        dialect=service.text.dialect,
        in_reasoning=prompt.in_reasoning,
        calls=asking.tools is not None,
        types=ArgumentTypes(None if asking.tools is None else asking.tools.plain),
        one_call=not wanted.parallel,
        stops=stops,
    )
    hides = body.thinking is not None and body.thinking.display == "omitted"
    writer = MessagesWriter(service.model_name, len(prompt.ids), service.seal, hides_reasoning=hides)
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


async def count_tokens(request: Request, service: Service, data: bytes) -> Response:
    """Length of the prompt that messages make."""
    asking = read(request, service, data, COUNT)
    service.check_model(asking.body.model)
    prompt = await prompt_of(asking, service)
    return json_response({"input_tokens": len(prompt.ids)}, {"request-id": new_request_id()})


class MessagesWriter:
    """Spells one answer, streamed or whole."""

    def __init__(self, model: str, prompt_tokens: int, seal: Seal, *, hides_reasoning: bool = False) -> None:
        self.prompt_tokens = prompt_tokens
        self.answer_id = f"msg_{secrets.token_hex(12)}"
        self.request_id = new_request_id()
        self.headers = {"request-id": self.request_id}
        self._model = model
        self._seal = seal
        self._hides_reasoning = hides_reasoning
        self._parts = Parts()
        self._delta_heads: dict[Part, bytes] = {}
        self._finish: OutputFinish | None = None
        self._stop_string: str | None = None

    def opening(self) -> bytes:
        return _PING

    def started(self, cached_tokens: int) -> bytes:
        usage = _usage(Usage(self.prompt_tokens, 0, cached_tokens))
        return named_frame({"type": "message_start", "message": self._message([], None, None, usage)})

    def update(self, update: Update) -> bytes:
        if update.finish is not None:
            self._finish, self._stop_string = update.finish, update.stop_string
        grown = self._parts.grown(update.events)
        if grown is not None:
            return self._frame(grown)
        return b"".join(map(self._frame, self._parts.changes(update.events)))

    def heartbeat(self) -> bytes:
        return _PING

    def closing(self, usage: Usage) -> bytes:
        delta = _ending(self._finish, self._stop_string)
        last = b"".join(map(self._frame, self._parts.end()))
        return (
            last
            + named_frame({"type": "message_delta", "delta": delta, "usage": _usage(usage)})
            + named_frame({"type": "message_stop"})
        )

    def failure(self, error: BaseException) -> bytes:
        return named_frame(anthropic_error(error).anthropic(self.request_id))

    def whole(self, choices: list[Collected], usage: Usage) -> dict[str, Any]:
        (choice,) = choices
        blocks = [self._block(part) for part in parts_of(choice.events)]
        ending = _ending(choice.finish, choice.stop_string)
        return self._message(blocks, ending["stop_reason"], ending["stop_sequence"], _usage(usage))

    def _message(
        self, blocks: list[dict[str, Any]], reason: str | None, sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }

    def _frame(self, change: Change) -> bytes:
        match change:
            case Opened(part):
                block = _empty_block(part)
                start = {"type": "content_block_start", "index": part.index, "content_block": block}
                kind, name = _DELTAS[part.kind]
                self._delta_heads[part] = (
                    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                    b'"delta":{"type":"%b","%b":' % (part.index, kind.encode(), name.encode())
                )
                return named_frame(start)
            case Grown(part, text):
                if part.kind == "reasoning" and self._hides_reasoning:
                    return b""
                return self._delta_heads[part] + encode(text) + b"}}\n\n"
            case Closed(part):
                stop = named_frame({"type": "content_block_stop", "index": part.index})
                return stop if part.kind != "reasoning" else self._signed(part) + stop

    def _signed(self, part: Part) -> bytes:
        delta = {"type": "signature_delta", "signature": self._signature(part)}
        return named_frame({"type": "content_block_delta", "index": part.index, "delta": delta})

    def _signature(self, part: Part) -> str:
        return self._seal.close(part.text if self._hides_reasoning else "")

    def _block(self, part: Part) -> dict[str, Any]:
        block = _empty_block(part)
        match part.kind:
            case "reasoning":
                shown = "" if self._hides_reasoning else part.text
                return block | {"thinking": shown, "signature": self._signature(part)}
            case "text":
                return block | {"text": part.text}
            case "call":
                return block | _input(part.text)


def _empty_block(part: Part) -> dict[str, Any]:
    match part.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            return {"type": "text", "text": ""}
        case "call":
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call. What is no JSON object, as the model was cut off, is there as it was written."""
    try:
        return {"input": msgspec.json.decode(arguments or "{}", type=dict[str, Any])}
    except (msgspec.MsgspecError, RecursionError):
        return {"input": {}, "partial_json": arguments}


def _ending(finish: OutputFinish | None, stop_string: str | None) -> dict[str, Any]:
    if finish == "stop" and stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_string}
    return {"stop_reason": _REASONS.get(finish or "stop", "end_turn"), "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """What was not cached is `input_tokens`; all of it is cached from now on, and nobody is charged for that."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
