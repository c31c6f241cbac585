# SPDX-License-Identifier: MIT
"""POST /v1/chat/completions: messages to a prompt, events to deltas or a message.

In: a `ChatBody`. Out: `chat.completion` or its chunks. The parser that finds reasoning and tool calls is the
text plane's; here they only get the dialect's spelling (`reasoning_content`, `tool_calls` with their ids).
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.errors import RequestError
from tokenspeed.base.sampling import LOGPROBS_MAX, TokenLogprob
from tokenspeed.serve.answer import Collected, Usage, respond
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.generation import Update
from tokenspeed.serve.openai.chat_request import SPELLING
from tokenspeed.serve.openai.forms import chat_wanted_of, check_ending
from tokenspeed.serve.openai.logprobs import chat_logprobs
from tokenspeed.serve.openai.sampling import check_common, options_of, params_of
from tokenspeed.serve.openai.schema import ChatBody
from tokenspeed.serve.openai.stream import DONE, failure, frames
from tokenspeed.serve.reading import prompt_of, read
from tokenspeed.serve.sampling import choices_of
from tokenspeed.serve.service import Service
from tokenspeed.serve.sse import encode, frame
from tokenspeed.text.events import ArgumentsDelta, CallStart, Content, Event, Reasoning
from tokenspeed.text.output import OutputOptions
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools.schema import ArgumentTypes

_HOLE: Final = {"a delta": "stands here"}


async def handle(request: Request, service: Service, data: bytes) -> Response:
    """Answer one request."""
    asking = read(request, service, data, SPELLING)
    body = asking.body
    service.check_model(body.model)
    check_common(body, asking.raw, service.bodies)
    _check(body)
    tokens_max = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    params = params_of(
        body,
        service.text,
        tokens_max=tokens_max,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    check_ending(body, chat_wanted_of(body, asking.offers, in_reasoning=False))
    prompt = await prompt_of(asking, service)
    service.check_length(len(prompt.ids), "messages")
    wanted = chat_wanted_of(body, asking.offers, in_reasoning=prompt.in_reasoning)
    constraint = await service.constraint(wanted)
    options = OutputOptions(
        dialect=service.text.dialect,
        in_reasoning=prompt.in_reasoning,
        calls=asking.tools is not None,
        types=ArgumentTypes(None if asking.tools is None else asking.tools.plain),
        one_call=body.parallel_tool_calls is False,
    )
    n = body.n or 1
    choices = choices_of(prompt.ids, params, options_of(body, options), n, constraint)
    writer = ChatWriter(body, service.model_name, service.text.tokenizer, len(prompt.ids))
    generation = service.generate(
        choices, asking.origin, answer_id=writer.answer_id, per_prompt=n, turn=prompt.turn
    )
    return await respond(
        request, generation, writer, n, stream=bool(body.stream), note_error=service.note_error
    )


def _check(body: ChatBody) -> None:
    """Refuse what this server does not do, by name."""
    for name in ("functions", "function_call"):
        if getattr(body, name) is not None:
            raise refused(name, "superseded by the API itself; use tools and tool_choice")
    if body.audio is not None:
        raise refused("audio", "this server answers with text only")
    if any(kind != "text" for kind in body.modalities or ()):
        raise refused("modalities", "this server answers with text only")
    if body.web_search_options is not None:
        raise refused("web_search_options", "this server fetches nothing; offer a tool instead")
    if body.top_logprobs is not None:
        if not body.logprobs:
            raise refused("top_logprobs", "only with logprobs: true")
        if not 0 <= body.top_logprobs <= LOGPROBS_MAX:
            raise out_of_range("top_logprobs", body.top_logprobs, f"in 0..{LOGPROBS_MAX}")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise RequestError(
            "max_tokens and max_completion_tokens differ; send one of them",
            code="invalid_value",
            param="max_completion_tokens",
        )


class ChatWriter:
    """Spells one chat answer, streamed or whole."""

    def __init__(self, body: ChatBody, model: str, tokenizer: Tokenizer, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._n = body.n or 1
        self.answer_id = f"chatcmpl-{secrets.token_hex(12)}"
        self._head = {"id": self.answer_id, "created": int(time.time()), "model": model}
        self.headers = {"x-request-id": self.answer_id}
        self._around: dict[int, tuple[bytes, bytes]] = {}
        self._tokenizer = tokenizer
        self._with_ids = body.return_token_ids
        self._with_logprobs = bool(body.logprobs)
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage

    def opening(self) -> bytes:
        return frames(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._n))

    def started(self, cached_tokens: int) -> bytes:
        return b""

    def update(self, update: Update) -> bytes:
        if update.finish is None and not self._with_ids and not self._with_logprobs:
            return b"".join(self._delta(update.index, event) for event in update.events)
        chunks = [self._chunk(update.index, delta) for delta in map(_delta, update.events) if delta]
        carries = (
            update.finish is not None or (self._with_ids and update.ids) or self._logprobs(update.logprobs)
        )
        if not chunks and carries:
            chunks = [self._chunk(update.index, {})]
        if chunks:
            # What belongs to tokens, not to text, rides on the first chunk of its update.
            first = chunks[0]["choices"][0]
            first["logprobs"] = self._logprobs(update.logprobs)
            if self._with_ids:
                first["token_ids"] = update.ids
        if update.finish is not None:
            if chunks[-1]["choices"][0]["delta"]:
                chunks.append(self._chunk(update.index, {}))
            chunks[-1]["choices"][0]["finish_reason"] = update.finish
        return frames(chunks)

    def heartbeat(self) -> bytes:
        return frame(self._chunk(0, {}))

    def closing(self, usage: Usage) -> bytes:
        if not self._with_usage:
            return DONE
        last = self._head | {"object": "chat.completion.chunk", "choices": [], "usage": usage.openai()}
        return frame(last) + DONE

    def failure(self, error: BaseException) -> bytes:
        return failure(error)

    def whole(self, choices: list[Collected], usage: Usage) -> dict[str, Any]:
        return self._head | {
            "object": "chat.completion",
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage.openai(),
        }

    def _choice(self, index: int, choice: Collected) -> dict[str, Any]:
        document: dict[str, Any] = {
            "index": index,
            "message": _message(choice.events),
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish,
        }
        return document | ({"token_ids": choice.ids} if self._with_ids else {})

    def _delta(self, index: int, event: Event) -> bytes:
        """The frame of one event, for the many that carry nothing else: cut out of a frame made before."""
        delta = _delta(event)
        if delta is None:
            return b""
        around = self._around.get(index)
        if around is None:
            before, after = frame(self._chunk(index, _HOLE)).split(encode(_HOLE))
            around = self._around[index] = before, after
        return around[0] + encode(delta) + around[1]

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        return chunk | ({"usage": None} if self._with_usage else {})

    def _logprobs(self, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(self._tokenizer, logprobs) if self._with_logprobs and logprobs else None


def _delta(event: Event) -> dict[str, Any] | None:
    """An event as the delta of a chunk; the end of a call has no spelling here."""
    match event:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallStart():
            return {"tool_calls": [{"index": event.index} | _call(event)]}
        case ArgumentsDelta(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case _:
            return None


def _message(events: list[Event]) -> dict[str, Any]:
    """Events as one message; content is null where there is none beside calls."""
    content = "".join(event.text for event in events if isinstance(event, Content))
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    calls: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, CallStart):
            calls.append(_call(event))
        elif isinstance(event, ArgumentsDelta):
            calls[-1]["function"]["arguments"] += event.text
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _call(start: CallStart) -> dict[str, Any]:
    return {"id": start.id, "type": "function", "function": {"name": start.name, "arguments": ""}}
