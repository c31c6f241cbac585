# SPDX-License-Identifier: MIT
"""All that a model directory says about text, loaded once: tokenizer, template, dialect, defaults.

In: a directory. Out: a `TextPlane`, immutable. `prompt_of_chat` is the whole way from messages to ids; it
takes milliseconds on long histories, so callers on an event loop run it in an executor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokenspeed.base.errors import RequestError
from tokenspeed.base.log import get_logger
from tokenspeed.text.chat_template import ChatTemplate, Message
from tokenspeed.text.generation_config import GenerationDefaults
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools import recognise
from tokenspeed.text.tools.spec import Dialect

_log = get_logger("text")


Ending = Literal["answer", "none", "last"]
"""Where a chat prompt ends: where an answer begins, after its messages, or inside the last of them, an answer that
the model is to go on with."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered and encoded prompt."""

    ids: list[int]
    in_reasoning: bool  # its end opens the reasoning, so the answer begins inside


@dataclass(frozen=True, slots=True)
class TextPlane:
    """The text side of one model."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    dialect: Dialect
    defaults: GenerationDefaults
    stop_ids: tuple[int, ...]  # ids that end an answer by the model's own rules

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        tokenizer_directory: Path | None = None,
        tool_call_parser: str = recognise.AUTO,
        reasoning_parser: str = recognise.AUTO,
    ) -> TextPlane:
        """Read a model directory; `SetupError` if its files are missing or wrong, or a parser is unknown."""
        text_directory = tokenizer_directory or directory
        tokenizer = Tokenizer.load(text_directory)
        template = ChatTemplate.load(text_directory, tokenizer.config)
        choice = recognise.choose(
            template,
            tokenizer.config,
            tool_call_parser=tool_call_parser,
            reasoning_parser=reasoning_parser,
        )
        dialect = choice.dialect
        defaults = GenerationDefaults.load(directory)
        eos_id = tokenizer.token_id(tokenizer.eos_token) if tokenizer.eos_token else None
        own_stops = (tokenizer.token_id(token) for token in dialect.stops)
        stop_ids = dict.fromkeys(i for i in (*defaults.eos_ids, eos_id, *own_stops) if i is not None)
        _log.info(
            "chat template: %s; tool calls: %s (%s); reasoning: %s (%s)",
            "none" if template is None else "own",
            dialect.name if dialect.takes_calls else "none",
            choice.calls_reason,
            dialect.reasoning.open if dialect.reasoning else "none",
            choice.reasoning_reason,
        )
        return cls(tokenizer, template, dialect, defaults, tuple(stop_ids))

    def within(self, vocab_size: int) -> TextPlane:
        """The same without stop ids that the model cannot say, which would fault every request."""
        kept = tuple(token_id for token_id in self.stop_ids if 0 <= token_id < vocab_size)
        if kept == self.stop_ids:
            return self
        _log.warning("stop ids %s are kept of %s: the model has %d ids", kept, self.stop_ids, vocab_size)
        return replace(self, stop_ids=kept)

    def prompt_of_chat(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: dict[str, Any] | None = None,
        ending: Ending = "answer",
    ) -> ChatPrompt:
        """Render and encode. Raises `RequestError` where the model cannot express the request."""
        text = self.text_of_chat(
            messages, tools=tools, variables=variables, add_generation_prompt=ending == "answer"
        )
        if ending == "last":
            text = _up_to_last(text, messages[-1])
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return ChatPrompt(ids, self.opens_reasoning(text))

    def text_of_chat(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: dict[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The rendering alone. Raises `RequestError` where the model cannot express the request."""
        template = self.template
        if template is None:
            raise RequestError(
                "this model has no chat template; send plain text to /v1/completions",
                code="unsupported_by_model",
                param="messages",
            )
        if tools and not (template.takes_tools and self.dialect.takes_calls):
            why = (
                "has no place for tools"
                if not template.takes_tools
                else "writes calls in no dialect known here; name one with --tool-call-parser"
            )
            raise RequestError(
                f"this model's chat template {why}; leave out tools",
                code="unsupported_by_model",
                param="tools",
            )
        return template.render(
            messages, tools=tools, variables=variables, add_generation_prompt=add_generation_prompt
        )

    def opens_reasoning(self, text: str) -> bool:
        """Whether a prompt that ends with `text` has opened the reasoning."""
        reasoning = self.dialect.reasoning
        return reasoning is not None and text.rstrip().endswith(reasoning.open)


def _up_to_last(text: str, last: Message) -> str:
    """A rendering up to the end of what its last message says."""
    content = last.get("content")
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    said = (content or "").strip()
    at = text.rfind(said) if said else -1
    if last["role"] != "assistant" or last.get("tool_calls") or at < 0:
        raise RequestError(
            "to be gone on with, the last message must be the assistant's, with words and without calls",
            code="invalid_messages",
            param="messages",
        )
    return text[: at + len(said)]
