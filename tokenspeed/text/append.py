# SPDX-License-Identifier: MIT
"""What a chat template does to the text it wrote before when messages are added: a lint, and its use.

Most templates only append: the prompt of a longer history is the text of the shorter one, less its generation
prompt, and then what the new messages say; which a rendering of a few stand-in messages and the new ones says as
well, for a cost that does not know how long the history is. Some do not, or not always: reasoning of earlier
turns disappears once the user speaks again, calls are numbered through the whole history. Nothing is known by
name. `Appending` renders a grid of short probe histories and continuations, whole and by stand-ins, and keeps a
verdict for each `Shape` of a turn; what it has not seen to hold is not used.

Probes show how a template treats roles, fields and order. What it reads in the *words* of a message they cannot
show, so words a template looks for (`'</think>' in content`) are taken from its source: a history that holds one
is never appended to. A template that asks for the time in a way that cannot be asked again is not either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tokenspeed.text.chat_template import ChatTemplate, Message

_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "stand_in",
        "description": "stands in",
        "parameters": {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]},
    },
}
_OTHER_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "probes",
        "parameters": {"type": "object", "properties": {"count": {"type": "integer"}}, "required": []},
    },
}
ROLES: Final = ("user", "tool")
"""Whose messages may end a prompt that is appended to."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a verdict depends on."""

    system: bool  # the history begins with a system message
    tools: bool
    reasoning: bool  # some answer, old or new, has its reasoning
    user: bool  # a new message is the user's

    def __str__(self) -> str:
        words = {
            "after a system message": self.system,
            "with tools": self.tools,
            "with reasoning": self.reasoning,
            "when the user speaks": self.user,
        }
        return " ".join(word for word, holds in words.items() if holds) or "plain"


class Appending:
    """One template with one set of variables, linted. Immutable; may be used from any thread."""

    def __init__(self, template: ChatTemplate, variables: dict[str, Any]) -> None:
        self._template = template
        self._variables = variables
        self._opened: dict[tuple[bool, str], tuple[str, str]] = {}
        self.verdicts: dict[Shape, bool] = {}
        for tools in (False, True) if template.takes_tools else (False,):
            self._open(tools)
            for system in (False, True):
                self._lint(system, tools)
        if template.clock is None:
            self.verdicts = dict.fromkeys(self.verdicts, False)

    @property
    def refused(self) -> list[Shape]:
        """Shapes of turns that need the whole history rendered."""
        return [shape for shape, holds in self.verdicts.items() if not holds]

    def opening(self, tools: bool, role: str) -> str | None:
        """The generation prompt after a message of `role`; None if it is not always the same."""
        known = self._opened.get((tools, role))
        return None if known is None else known[1]

    def added(self, shape: Shape, role: str, messages: list[Message]) -> str | None:
        """What `messages` add to a history whose last message is of `role`, with their generation prompt.

        None where only a rendering of the whole history can say.
        """
        if not self.verdicts.get(shape, False) or not messages or messages[-1]["role"] not in ROLES:
            return None
        if any(message["role"] not in ("user", "assistant", "tool") for message in messages):
            return None
        if messages[0]["role"] == "tool":  # belongs to the messages before
            return None
        return self._by_stand_ins(shape.tools, role, messages)

    def _by_stand_ins(self, tools: bool, role: str, messages: list[Message]) -> str | None:
        known = self._opened.get((tools, role))
        if known is None:
            return None
        text = self._render([*_stand_ins(role), *messages], [_TOOL] if tools else None)
        return text[len(known[0]) :] if text is not None and text.startswith(known[0]) else None

    def _render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, *, open: bool = True
    ) -> str | None:
        return self._template.attempt(
            messages, tools=tools, variables=self._variables, add_generation_prompt=open
        )

    def _open(self, tools: bool) -> None:
        """Render the stand-ins, closed and with the generation prompt."""
        for role in ROLES:
            given = [_TOOL] if tools else None
            closed = self._render(_stand_ins(role), given, open=False)
            opened = self._render(_stand_ins(role), given)
            if closed is not None and opened is not None and opened.startswith(closed):
                self._opened[tools, role] = (closed, opened[len(closed) :])

    def _lint(self, system: bool, tools: bool) -> None:
        """Fill the verdicts of four shapes."""
        given = [_OTHER_TOOL, _TOOL] if tools else None
        held: dict[Shape, list[bool]] = {
            Shape(system, tools, reasoning, user): []
            for reasoning, user in itertools.product((False, True), (False, True))
        }
        additions = [
            (new, {role: self._by_stand_ins(tools, role, new) for role in ROLES}) for new in _continuations()
        ]
        for history in _histories(system):
            role = history[-1]["role"]
            before = self._render(history, given, open=False)
            if before is None:
                continue  # such a history never was a prompt
            opening = self.opening(tools, role)
            is_steady = opening is not None and self._render(history, given) == before + opening
            for new, parts in additions:
                reasoning = has_reasoning([*history, *new])
                shape = Shape(system, tools, reasoning, user=any(m["role"] == "user" for m in new))
                whole, part = self._render([*history, *new], given), parts[role]
                if whole is not None or part is not None:
                    held[shape].append(is_steady and part is not None and whole == before + part)
        self.verdicts.update({shape: bool(found) and all(found) for shape, found in held.items()})


def has_reasoning(messages: list[Message]) -> bool:
    """Whether some message brings its reasoning."""
    return any(message.get("reasoning_content") for message in messages)


def _answer(content: str | None, calls: int, reasoning: str | None, mark: str) -> Message:
    message: Message = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{mark}{index}",
                "type": "function",
                "function": {
                    "name": ("probe", "stand_in")[index % 2],
                    "arguments": {"of": f"{mark}\n{index}"},
                },
            }
            for index in range(calls)
        ]
    return message


def _results(calls: int, mark: str) -> list[Message]:
    return [
        {"role": "tool", "content": f"result {mark}\n{index}\n", "tool_call_id": f"call_{mark}{index}"}
        for index in range(calls)
    ]


def _stand_ins(role: str) -> list[Message]:
    """The shortest history that ends with a message of `role`."""
    user: Message = {"role": "user", "content": "Stand in?"}
    return [user] if role == "user" else [user, _answer("", 1, None, "s"), *_results(1, "s")]


def _turn(kind: str, reasoning: str | None, mark: str) -> list[Message]:
    """u: the user asks; a: an answer; c: a call and its result, silently; d: words, two calls, results."""
    match kind:
        case "u":
            return [{"role": "user", "content": f" probe {mark}\n"}]
        case "a":
            return [_answer(f"answer {mark}", 0, reasoning, mark)]
        case "c":
            return [_answer(None if mark.endswith("1") else "", 1, reasoning, mark), *_results(1, mark)]
        case _:
            return [_answer(f"I call {mark}.", 2, reasoning, mark), *_results(2, mark)]


def _written(kinds: str, reasoning: str | None, prefix: str) -> list[Message]:
    return [
        message
        for index, kind in enumerate(kinds)
        for message in _turn(kind, reasoning and f"{reasoning} {prefix}{index}", f"{prefix}{index}")
    ]


def _histories(system: bool) -> Iterator[list[Message]]:
    first = [{"role": "system", "content": "Probe."}] if system else []
    for written in ("u", "uau", "uc", "uauauau", "ucd", "uauc", "ucau", "udccaucd"):
        for reasoning in (None, "why") if written != "u" else (None,):
            yield [*first, *_written(written, reasoning, "h")]


def _continuations() -> Iterator[list[Message]]:
    for written in ("au", "c", "dc", "auc", "cau", "cu", "u"):
        for reasoning in (None, "why") if written != "u" else (None,):
            yield _written(written, reasoning, "n")
