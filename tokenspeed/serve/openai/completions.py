# SPDX-License-Identifier: MIT
"""POST /v1/completions: text or token ids continued.

In: a `CompletionBody` whose prompt is a string, a list of strings, a list of ids, or a list of lists of ids.
Out: `text_completion`, whole or as chunks; choice `p * n + i` is answer i to prompt p. No template, no
parsing of calls or reasoning.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.errors import RequestError
from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.engine import wire
from tokenspeed.serve.answer import Collected, Usage, json_response, respond
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.generation import Origin, Update
from tokenspeed.serve.openai.echo import prompt_logprobs
from tokenspeed.serve.openai.forms import check_ending, wanted_of
from tokenspeed.serve.openai.logprobs import completion_logprobs, echoed_logprobs, joined_logprobs
from tokenspeed.serve.openai.sampling import (
    CHOICES_MAX,
    check_common,
    options_of,
    params_of,
)
from tokenspeed.serve.openai.schema import CompletionBody, TokenId
from tokenspeed.serve.openai.stream import DONE, failure, frames
from tokenspeed.serve.origin import origin_of
from tokenspeed.serve.sampling import choices_of
from tokenspeed.serve.service import Service
from tokenspeed.serve.sse import HEADERS, frame
from tokenspeed.text.fill import Fill
from tokenspeed.text.output import OutputOptions, content_of
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools.spec import PLAIN

TOKENS_DEFAULT: Final = 16  # the API's own default


@dataclass(frozen=True, slots=True)
class Echo:
    """What precedes the text of a choice."""

    text: str = ""
    logprobs: dict[str, Any] | None = None


async def handle(request: Request, service: Service, data: bytes) -> Response:
    """Answer one request."""
    body, raw = service.bodies.parse(data, CompletionBody)
    service.check_model(body.model)
    check_common(body, raw, service.bodies)
    prompts = _prompts(body.prompt)
    n = body.n or 1
    if len(prompts) * n > CHOICES_MAX:
        raise out_of_range("number of answers", len(prompts) * n, f"at most {CHOICES_MAX}", param="prompt")
    only_echo = body.echo and body.max_tokens == 0
    params = params_of(
        body,
        service.text,
        tokens_max=1 if only_echo else TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
    )
    if body.forced_token_ids is not None:
        _check_forced(body, body.forced_token_ids, service, choices=len(prompts) * n)
        params = msgspec.structs.replace(params, forced=wire.ids_bytes(np.array(body.forced_token_ids)))
    wanted = wanted_of(body)
    check_ending(body, wanted)
    constraint = await service.constraint(wanted, PLAIN)
    fill = _fill_of(body, service)
    if fill is not None and not body.ignore_eos:
        params = msgspec.structs.replace(params, stop_ids=(*params.stop_ids, *fill.stop_ids))
    encoded = await service.run_text(lambda: _encoded(prompts, body, fill, service.text.tokenizer))
    for ids in encoded:
        service.check_length(len(ids), "prompt")
    origin = origin_of(request, body, cache_key=body.prompt_cache_key)
    options = options_of(body, OutputOptions())
    answer_id = f"cmpl-{secrets.token_hex(12)}"
    echoes = [Echo()] * len(prompts)
    if body.echo:
        echoes = await _echoes(request, service, prompts, encoded, params, origin, answer_id)
    echoes = [echo for echo in echoes for _ in range(n)]
    writer = CompletionWriter(
        body, service.model_name, service.text.tokenizer, sum(map(len, encoded)), echoes, answer_id
    )
    if only_echo:
        return _only_echo(writer, len(echoes), is_stream=bool(body.stream))
    choices = [choice for ids in encoded for choice in choices_of(ids, params, options, n, constraint)]
    generation = service.generate(choices, origin, answer_id=writer.answer_id, per_prompt=n)
    return await respond(
        request, generation, writer, len(choices), stream=bool(body.stream), note_error=service.note_error
    )


def _fill_of(body: CompletionBody, service: Service) -> Fill | None:
    """How the model is asked for what stands before `suffix`; None where there is none."""
    if not body.suffix:
        return None
    fill = Fill.of(service.text.tokenizer)
    if fill is None:
        raise refused("suffix", "this model's vocabulary has no tokens for filling in the middle")
    return fill


def _encoded(
    prompts: list[str] | list[list[int]], body: CompletionBody, fill: Fill | None, tokenizer: Tokenizer
) -> list[list[int]]:
    """The ids of each prompt."""

    def ids_of(text: str | list[int], *, framed: bool) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=framed) if isinstance(text, str) else text

    if fill is None:
        return [ids_of(prompt, framed=body.add_special_tokens) for prompt in prompts]
    head = tokenizer.encode("", add_special_tokens=True) if body.add_special_tokens else []
    after = ids_of(body.suffix or "", framed=False)
    return [[*head, *fill.prompt(ids_of(prompt, framed=False), after)] for prompt in prompts]


async def _echoes(
    request: Request,
    service: Service,
    prompts: list[str] | list[list[int]],
    encoded: list[list[int]],
    params: SamplingParams,
    origin: Origin,
    answer_id: str,
) -> list[Echo]:
    """What precedes the texts of each prompt's choices."""
    tokenizer = service.text.tokenizer
    texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
    if params.logprobs is None:
        return list(map(Echo, texts))
    found = await prompt_logprobs(request, service, encoded, params, origin, answer_id=answer_id)
    return [
        Echo(text, echoed_logprobs(tokenizer, ids, logprobs) if ids else None)
        for text, ids, logprobs in zip(texts, encoded, found, strict=True)
    ]


def _only_echo(writer: CompletionWriter, choices: int, *, is_stream: bool) -> Response:
    """The answer to a request for no tokens at all."""
    usage = Usage(writer.prompt_tokens, 0, 0)
    if not is_stream:
        return json_response(writer.whole([Collected(finish="length")] * choices, usage), writer.headers)
    last = (writer.update(Update(index, [], [], [], "length")) for index in range(choices))
    told = writer.opening() + b"".join(last) + writer.closing(usage)
    return Response(told, headers=HEADERS | writer.headers, media_type="text/event-stream")


def _prompts(prompt: str | list[Any]) -> list[str] | list[list[int]]:
    """The prompts of a request, each a text or a list of ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise out_of_range("prompt", "empty", "a string, a list of token ids, or a list of these")
    try:
        match prompt[0]:
            case str():
                return msgspec.convert(prompt, list[str])
            case int():
                return [msgspec.convert(prompt, list[TokenId])]
            case _:
                return msgspec.convert(prompt, list[list[TokenId]])
    except msgspec.ValidationError as error:
        raise RequestError(
            "prompt: expected a string, a list of token ids (32 bits, not negative), or a list of these",
            code="invalid_type",
            param="prompt",
        ) from error


def _check_forced(body: CompletionBody, ids: list[int], service: Service, *, choices: int) -> None:
    """A recorded answer is said whole, by one choice, and only where the operator allows it."""
    name = "forced_token_ids"
    if not service.config.server.allow_forced_output:
        raise refused(name, "this server was not started with --allow-forced-output")
    if not ids:
        raise out_of_range(name, "empty", "a list of at least one token id")
    if choices != 1:
        raise refused(name, f"for one answer; this request wants {choices}")
    if body.stop:
        raise refused(name, "not with stop: a recorded answer is said whole")
    if body.max_tokens not in (None, len(ids)):
        raise out_of_range("max_tokens", body.max_tokens, f"{len(ids)}, the number of {name}, or absent")


class CompletionWriter:
    """Spells one completion, streamed or whole. `echoes` is what precedes each choice's text."""

    def __init__(
        self,
        body: CompletionBody,
        model: str,
        tokenizer: Tokenizer,
        prompt_tokens: int,
        echoes: list[Echo],
        answer_id: str,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.answer_id = answer_id
        self.headers = {"x-request-id": self.answer_id}
        self._head = {
            "id": self.answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._offsets = [len(echo.text) for echo in echoes]
        self._with_ids = body.return_token_ids
        self._with_logprobs = body.logprobs is not None
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage

    def opening(self) -> bytes:
        # Without an echo there is nothing to say yet; an empty piece of text is still a real event.
        return frames(map(self._echoed, range(len(self._echoes))))

    def started(self, cached_tokens: int) -> bytes:
        return b""

    def update(self, update: Update) -> bytes:
        text = content_of(update.events)
        if not (
            text
            or update.finish
            or (self._with_ids and update.ids)
            or (self._with_logprobs and update.logprobs)
        ):
            return b""
        chunk = self._chunk(update.index, text)
        choice = chunk["choices"][0]
        choice["logprobs"] = self._logprobs(update.index, update.logprobs)
        choice["finish_reason"] = update.finish
        if self._with_ids:
            choice["token_ids"] = update.ids
        return frame(chunk)

    def heartbeat(self) -> bytes:
        return frame(self._chunk(0, ""))

    def closing(self, usage: Usage) -> bytes:
        if not self._with_usage:
            return DONE
        return frame(self._head | {"choices": [], "usage": usage.openai()}) + DONE

    def failure(self, error: BaseException) -> bytes:
        return failure(error)

    def whole(self, choices: list[Collected], usage: Usage) -> dict[str, Any]:
        documents: list[dict[str, Any]] = []
        for index, choice in enumerate(choices):
            document: dict[str, Any] = {
                "index": index,
                "text": self._echoes[index].text + content_of(choice.events),
                "logprobs": joined_logprobs(
                    self._echoes[index].logprobs, self._logprobs(index, choice.logprobs)
                ),
                "finish_reason": choice.finish,
            }
            documents.append(document | ({"token_ids": choice.ids} if self._with_ids else {}))
        return self._head | {"choices": documents, "usage": usage.openai()}

    def _echoed(self, index: int) -> dict[str, Any]:
        chunk = self._chunk(index, self._echoes[index].text)
        chunk["choices"][0]["logprobs"] = self._echoes[index].logprobs
        return chunk

    def _chunk(self, index: int, text: str) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        return self._head | {"choices": [choice]} | ({"usage": None} if self._with_usage else {})

    def _logprobs(self, index: int, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        document = completion_logprobs(self._tokenizer, logprobs, self._offsets[index])
        self._offsets[index] += sum(map(len, document["tokens"]))
        return document
