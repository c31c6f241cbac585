# SPDX-License-Identifier: MIT
"""How chat completions spell a chat request, for `serve.reading`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.forms import offers
from tokenspeed.serve.generation import Origin
from tokenspeed.serve.openai.messages import plain_messages, plain_tools
from tokenspeed.serve.openai.schema import ChatBody
from tokenspeed.serve.origin import origin_of
from tokenspeed.serve.reading import Document, Fields, Tools, array_place
from tokenspeed.serve.service import Service
from tokenspeed.text.chat_template import Message
from tokenspeed.text.plane import Ending


class ChatSpelling:
    """Messages are the history, system messages among them; tools pass as they were sent."""

    name = "chat"
    body = ChatBody
    history = "messages"

    def place(self, data: bytes, fields: Fields, service: Service) -> tuple[bytes, int, int]:
        return array_place(data, fields["messages"])

    def documents(self, body: ChatBody, raw: Document, service: Service) -> list[Document]:
        if not body.messages:
            raise out_of_range("messages", "empty", "a list of at least one message")
        return raw["messages"]

    def messages(self, documents: list[Document], service: Service) -> list[Message]:
        return plain_messages(documents, service.bodies)

    def leading(self, body: ChatBody) -> list[Message]:
        return []

    def tools(self, documents: list[Document]) -> Tools | None:
        plain = plain_tools(documents)
        return None if plain is None else Tools(plain, offers=tuple(offers(plain)))

    def offers_tools(self, body: ChatBody) -> bool:
        return body.tool_choice != "none"

    def variables(self, body: ChatBody) -> dict[str, Any]:
        variables = dict(body.chat_template_kwargs or {})
        if body.reasoning_effort == "none":
            variables = {"enable_thinking": False, "thinking": False} | variables
        elif body.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", body.reasoning_effort)
        return variables

    def origin(self, body: ChatBody, request: Request) -> Origin:
        return origin_of(request, body, cache_key=body.prompt_cache_key)

    def ending(self, body: ChatBody, last_role: str) -> Ending:
        if body.continue_final_message:
            return "last"
        return "answer" if body.add_generation_prompt else "none"


SPELLING = ChatSpelling()
