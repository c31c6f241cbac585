# SPDX-License-Identifier: MIT
"""How the Anthropic dialect spells a chat request, for `serve.reading`."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from tokenspeed.serve.anthropic.blocks import plain_messages, plain_system, plain_tools
from tokenspeed.serve.anthropic.schema import CountBody, MessagesBody
from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.generation import Origin
from tokenspeed.serve.origin import origin_of
from tokenspeed.serve.reading import Document, Fields, Tools, array_place, retain_of
from tokenspeed.serve.service import Service
from tokenspeed.text.chat_template import Message
from tokenspeed.text.plane import Ending

_THINKS: Final = {"enabled": True, "adaptive": True, "disabled": False}


class MessagesSpelling:
    """The system text stands before the history and beside it in the body."""

    name = "messages"
    history = "messages"

    def __init__(self, body: type[MessagesBody] | type[CountBody]) -> None:
        self.body = body

    def place(self, data: bytes, fields: Fields, service: Service) -> tuple[bytes, int, int]:
        return array_place(data, fields["messages"])

    def documents(self, body: MessagesBody | CountBody, raw: Document, service: Service) -> list[Document]:
        if not body.messages:
            raise out_of_range("messages", "empty", "a list of at least one message")
        return raw["messages"]

    def messages(self, documents: list[Document], service: Service) -> list[Message]:
        return plain_messages(documents, service.bodies, service.seal)

    def leading(self, body: MessagesBody | CountBody) -> list[Message]:
        return plain_system(body.system)

    def tools(self, documents: list[Document]) -> Tools | None:
        return plain_tools(documents)

    def offers_tools(self, body: MessagesBody | CountBody) -> bool:
        return body.tool_choice is None or body.tool_choice.type != "none"

    def variables(self, body: MessagesBody | CountBody) -> dict[str, Any]:
        """Templates ask for `enable_thinking` or for `thinking`; what one does not ask for it does not see."""
        variables = dict(body.chat_template_kwargs or {})
        if body.thinking is not None:
            thinks = _THINKS.get(body.thinking.type)
            if thinks is None:
                raise out_of_range(
                    "thinking.type", repr(body.thinking.type[:100]), f"one of {', '.join(_THINKS)}"
                )
            variables = {"enable_thinking": thinks, "thinking": thinks} | variables
        if body.output_config is not None and body.output_config.effort is not None:
            variables.setdefault("reasoning_effort", body.output_config.effort)
        return variables

    def origin(self, body: MessagesBody | CountBody, request: Request) -> Origin:
        if isinstance(body, CountBody):
            return Origin()
        user_id = body.metadata.user_id if body.metadata is not None else None
        marks = [body.cache_control]
        if isinstance(body.system, list):
            marks += [block.cache_control for block in body.system]
        retain_us = max((retain_of(mark.ttl) for mark in marks if mark is not None), default=0)
        return origin_of(request, body, user_id=user_id, retain_us=retain_us)

    def ending(self, body: MessagesBody | CountBody, last_role: str) -> Ending:
        """An answer that has been begun is gone on with."""
        return "last" if last_role == "assistant" else "answer"


MESSAGES: Final = MessagesSpelling(MessagesBody)
COUNT: Final = MessagesSpelling(CountBody)
