# SPDX-License-Identifier: MIT
"""Messages to the text a model was taught: the checkpoint's own template, compiled once.

In: messages, tools and extra variables as plain JSON values. Out: text, or a `RequestError` that says what
the template did not accept. What differs between templates is found by trying them when they are loaded,
never by a model's name: whether they take content as a list of parts, accept a null content, know tools, how
they call reasoning. It reads no image and fetches nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec

from tokenspeed.base.errors import RequestError, SetupError
from tokenspeed.base.log import get_logger
from tokenspeed.text import sandbox
from tokenspeed.text.template_source import clock_patterns, watched_words

Message = dict[str, Any]

DEFAULT: Final = "default"
TOOL_USE: Final = "tool_use"
_log = get_logger("text")

_RESERVED: Final = frozenset({"messages", "tools", "add_generation_prompt"})
_OPEN: Final = {"add_generation_prompt": True}
_PROBE: Final = "probe-9f2c"
_PROBE_TOOL: Final = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": _PROBE,
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


class ChatTemplate:
    """The templates of one model. Rendering holds no state and may run in any thread."""

    def __init__(
        self,
        sources: dict[str, str],
        special_tokens: dict[str, str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = sandbox.ChatEnvironment(now)
        self._special_tokens = special_tokens
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in sources.items():
            try:
                self._templates[name] = environment.load_source(source)
            except jinja2.TemplateError as error:
                raise SetupError(f"the chat template {name!r} does not compile: {error}") from error
        self.source = sources.get(TOOL_USE, sources[DEFAULT])
        self.watched = frozenset[str]().union(
            *(watched_words(environment.parse(s)) for s in sources.values())
        )
        """Words that it looks for inside contents; where one occurs, the words decide what is written."""
        self.clock = clock_patterns("".join(sources.values()))
        """How it asks for the time; None if that is not written out."""
        self._now = now
        user = {"role": "user", "content": _PROBE}
        self.takes_parts = self._equal([user], [user | {"content": [{"type": "text", "text": _PROBE}]}])
        self.takes_null = self._accepts_null_content()
        self.takes_thinking, self.takes_thinking_beside_content = self._accepts_thinking()
        self.takes_systems, self.takes_later_system = self._accepts_systems()
        self.takes_tools = _PROBE in (self._try([user | {"content": "x"}], _OPEN, tools=[_PROBE_TOOL]) or "")

    @classmethod
    def load(cls, directory: Path, config: dict[str, Any]) -> ChatTemplate | None:
        """Read a model directory; `config` is its tokenizer_config. None if the model has no template."""
        sources = _sources(directory, config)
        if not sources:
            return None
        sources.setdefault(DEFAULT, next(iter(sources.values())))
        special_tokens = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and isinstance(token, str | dict)
        }
        return cls(sources, special_tokens)

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: dict[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt's text. Raises `RequestError` (code `invalid_messages`) if the template refuses it."""
        taken = _RESERVED & (variables or {}).keys()
        if taken:
            raise RequestError(
                f"chat_template_kwargs cannot set {', '.join(sorted(taken))}; the request itself does",
                code="invalid_value",
                param="chat_template_kwargs",
            )
        shaped = [self._shape(message) for message in self.placed(messages)]
        extra = {"add_generation_prompt": add_generation_prompt} | (variables or {})
        try:
            return self._render(shaped, tools, extra)
        except jinja2.TemplateError as error:
            failure = error
        wrapped = [_wrap_raw_arguments(message) for message in shaped]
        if wrapped != shaped:
            # Arguments that are no JSON object, and a template that wants one.
            try:
                return self._render(wrapped, tools, extra)
            except jinja2.TemplateError as error:
                failure = error
        raise RequestError(
            f"the model's chat template does not accept these messages: {failure}",
            code="invalid_messages",
            param="messages",
        ) from failure

    def placed(self, messages: list[Message], *, later: bool = False) -> list[Message]:
        """The same with system messages only where the template takes them: others become the user's.

        Several at the head are joined where it takes one. With `later`, none of these is the first message. What
        becomes of a message does not depend on those after it, and only at the head on those before.
        """
        placed: list[Message] = []
        for message in messages:
            if message["role"] != "system":
                later = True
                placed.append(message)
            elif later:
                placed.append(message if self.takes_later_system else message | {"role": "user"})
            elif placed and not self.takes_systems:
                both = (_text(placed[0]["content"]), _text(message["content"]))
                placed[0] = placed[0] | {"content": "\n\n".join(both)}
            else:
                placed.append(message)
        return placed

    def attempt(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
        add_generation_prompt: bool,
    ) -> str | None:
        """As `render`, but None if the template does not take the messages as they are."""
        return self._try(
            [self._shape(message) for message in messages],
            {"add_generation_prompt": add_generation_prompt} | variables,
            tools=tools,
        )

    def times(self) -> tuple[str, ...]:
        """What the template would be told of the time now: while this stays, so does what it writes."""
        now = self._now()
        return tuple(now.strftime(pattern) for pattern in self.clock or ())

    def _render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, extra: dict[str, Any]
    ) -> str:
        template = self._templates[TOOL_USE if tools and TOOL_USE in self._templates else DEFAULT]
        return sandbox.render(
            template, {**self._special_tokens, "messages": messages, "tools": tools, **extra}
        )

    def _shape(self, message: Message) -> Message:
        """A message as this template wants it."""
        content = message.get("content")
        if isinstance(content, list) and not self.takes_parts:
            content = _text(content)
        if content is None and not self.takes_null:
            content = ""
        shaped = message | {"content": content}
        if message.get("tool_calls"):
            shaped["tool_calls"] = [_shape_call(call) for call in message["tool_calls"]]
        reasoning = message.get("reasoning_content")
        if reasoning and self.takes_thinking:
            shaped["thinking"] = reasoning
            if content and message.get("tool_calls") and not self.takes_thinking_beside_content:
                # What was said before the calls is kept where the template has a place for it.
                shaped |= {"thinking": f"{reasoning}\n{content}", "content": ""}
        return shaped

    def _accepts_null_content(self) -> bool:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
        empty = {"role": "assistant", "content": "", "tool_calls": [call]}
        user = {"role": "user", "content": "x"}
        return self._equal([user, empty], [user, empty | {"content": None}])

    def _accepts_systems(self) -> tuple[bool, bool]:
        """Whether a second system message is written at the head, and a later one where it stands."""
        user, system = {"role": "user", "content": "x"}, {"role": "system", "content": _PROBE}
        head = self._try([system | {"content": "x"}, system, user], _OPEN) or ""
        answer = {"role": "assistant", "content": "words before it"}
        later = self._try([user, answer, system, user], _OPEN) or ""
        return _PROBE in head, 0 <= later.find("words before it") < later.find(_PROBE)

    def _accepts_thinking(self) -> tuple[bool, bool]:
        """Whether reasoning beside calls is written where it is named `thinking`, and there beside content too."""
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call], "thinking": _PROBE}
        user = {"role": "user", "content": "x"}
        alone, both = (self._try([user, answer | {"content": c}], _OPEN) or "" for c in ("", "y"))
        return _PROBE in alone, _PROBE in both

    def _equal(self, one: list[Message], other: list[Message]) -> bool:
        first = self._try(one, _OPEN)
        return first is not None and first == self._try(other, _OPEN)

    def _try(
        self, messages: list[Message], extra: dict[str, Any], *, tools: list[dict[str, Any]] | None = None
    ) -> str | None:
        try:
            return self._render(messages, tools, extra)
        except jinja2.TemplateError as error:
            _log.debug("the chat template refused a probe: %s", error)
            return None


def _sources(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Template sources by name: files first, then the configuration's field."""
    sources: dict[str, str] = {}
    main = directory / "chat_template.jinja"
    if main.is_file():
        sources[DEFAULT] = main.read_text(encoding="utf-8")
    for path in sorted(directory.glob("additional_chat_templates/*.jinja")):
        sources[path.stem] = path.read_text(encoding="utf-8")
    if sources:
        return sources
    field = config.get("chat_template")
    if isinstance(field, str):
        return {DEFAULT: field}
    if isinstance(field, list):
        return {entry["name"]: entry["template"] for entry in field}
    return {}


def _text(content: str | list[dict[str, Any]] | None) -> str:
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def _shape_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose arguments are an object where their text is one, and the raw text otherwise."""
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        # What is no JSON object is rendered as the model wrote it.
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            arguments = msgspec.json.decode(arguments, type=dict[str, Any])
    return call | {"function": function | {"arguments": arguments}}


def _wrap_raw_arguments(message: Message) -> Message:
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    if all(isinstance(call["function"]["arguments"], dict) for call in calls):
        return message
    return message | {
        "tool_calls": [
            call
            if isinstance(call["function"]["arguments"], dict)
            else call
            | {"function": call["function"] | {"arguments": {"arguments": call["function"]["arguments"]}}}
            for call in calls
        ]
    }
