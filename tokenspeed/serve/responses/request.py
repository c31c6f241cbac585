# SPDX-License-Identifier: MIT
"""How the Responses dialect spells a chat request, for `serve.reading`.

The history is the items of the answer that a request goes on from, if it names one, and then its input; an input
that is a string is the message of a user. As bytes these are one array, so that the turn ledger finds a session
however its client sends it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request

from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.generation import Origin
from tokenspeed.serve.origin import origin_of
from tokenspeed.serve.pseudo_headers import without_pseudo_headers
from tokenspeed.serve.reading import Document, Fields, Tools, array_place, last_end
from tokenspeed.serve.responses.items import plain_items, plain_tools
from tokenspeed.serve.responses.schema import ResponsesBody
from tokenspeed.serve.service import Service
from tokenspeed.text.chat_template import Message
from tokenspeed.text.plane import Ending


class ResponsesSpelling:
    """Instructions stand before the history; they are those of this request alone."""

    name = "responses"
    body = ResponsesBody
    history = "input"

    def place(self, data: bytes, fields: Fields, service: Service) -> tuple[bytes, int, int]:
        given = fields["input"]
        text = bytes(given)
        if text.startswith(b'"'):
            data = b'[{"role":"user","content":' + text + b"}]"
            begin, end = 0, len(data) - 1
        else:
            data, begin, end = array_place(data, given)
        if "previous_response_id" not in fields:
            return data, begin, end
        before = service.responses.previous(*_previous(fields)).items
        whole = b"[" + b",".join(filter(None, (before, data[begin + 1 : end].strip()))) + b"]"
        return whole, 0, last_end(whole, len(whole))

    def documents(self, body: ResponsesBody, raw: Document, service: Service) -> list[Document]:
        given = raw["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if body.previous_response_id is not None:
            salt = (body.cache_salt or "").encode()
            kept = service.responses.previous(body.previous_response_id, salt)
            items = [*msgspec.json.decode(b"[" + kept.items + b"]"), *items]
        if not items:
            raise out_of_range("input", "empty", "a string, or a list of at least one item")
        return items

    def messages(self, documents: list[Document], service: Service) -> list[Message]:
        return plain_items(documents, service.bodies, service.seal)

    def leading(self, body: ResponsesBody) -> list[Message]:
        text = without_pseudo_headers(body.instructions or "")
        return [{"role": "system", "content": text}] if text else []

    def tools(self, documents: list[Document]) -> Tools | None:
        return plain_tools(documents)

    def offers_tools(self, body: ResponsesBody) -> bool:
        return body.tool_choice != "none"

    def variables(self, body: ResponsesBody) -> dict[str, Any]:
        variables = dict(body.chat_template_kwargs or {})
        effort = None if body.reasoning is None else body.reasoning.effort
        if effort == "none":
            variables = {"enable_thinking": False, "thinking": False} | variables
        elif effort is not None:
            variables.setdefault("reasoning_effort", effort)
        return variables

    def origin(self, body: ResponsesBody, request: Request) -> Origin:
        return origin_of(request, body, cache_key=body.prompt_cache_key)

    def ending(self, body: ResponsesBody, last_role: str) -> Ending:
        return "answer"


def _previous(fields: Fields) -> tuple[str, bytes]:
    """Id and salt, before the other fields are decoded."""
    answer_id = msgspec.json.decode(fields["previous_response_id"], type=str)
    salt = msgspec.json.decode(fields["cache_salt"], type=str) if "cache_salt" in fields else ""
    return answer_id, salt.encode()


RESPONSES: Final = ResponsesSpelling()
