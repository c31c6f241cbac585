# SPDX-License-Identifier: MIT
"""POST /tokenize and /detokenize: what the model would be given, and back."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.errors import RequestError
from tokenspeed.serve.answer import json_response
from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.openai.messages import plain_messages, plain_tools
from tokenspeed.serve.openai.schema import DetokenizeBody, TokenizeBody
from tokenspeed.serve.service import Service


async def tokenize(request: Request, service: Service, data: bytes) -> Response:
    """Ids of a text, or of the prompt that messages make."""
    body, raw = service.bodies.parse(data, TokenizeBody)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("send either prompt or messages", code="invalid_value", param="prompt")
    text = service.text
    if body.messages is not None:
        messages = plain_messages(raw["messages"], service.bodies)
        tools = plain_tools(raw.get("tools", []))
        prompt = await service.run_text(
            lambda: text.prompt_of_chat(
                messages,
                tools=tools,
                variables=body.chat_template_kwargs,
                ending="answer" if body.add_generation_prompt else "none",
            )
        )
        ids = prompt.ids
    else:
        plain = body.prompt or ""
        ids = await service.run_text(
            lambda: text.tokenizer.encode(plain, add_special_tokens=body.add_special_tokens)
        )
    document: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.context_tokens_max}
    if body.return_token_strs:
        document["token_strs"] = [text.tokenizer.token(token_id) for token_id in ids]
    return json_response(document)


async def detokenize(request: Request, service: Service, data: bytes) -> Response:
    """Text of ids."""
    body, _ = service.bodies.parse(data, DetokenizeBody)
    service.check_model(body.model)
    tokenizer = service.text.tokenizer
    for token_id in body.tokens:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise out_of_range("tokens", token_id, f"ids in 0..{tokenizer.vocab_size - 1}")
    text = await service.run_text(
        lambda: tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens)
    )
    return json_response({"prompt": text})
