# SPDX-License-Identifier: MIT
"""Dialects as data: the markers and shapes from which a parser (and, later, a grammar) derives.

A dialect is recognised by the checkpoint's own chat template, never by the model's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning stands between two markers at the very start of an output."""

    open: str = "<think>"
    close: str = "</think>"


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Each call is a JSON object between two markers."""

    open: str = "<tool_call>"
    close: str = "</tool_call>"
    name_key: str = "name"
    arguments_key: str = "arguments"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the parser looks for; a part that is None is plain content."""

    name: str
    reasoning: ReasoningFormat | None = None
    calls: JsonCalls | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must reach the parser even where the vocabulary calls them special."""
        parts = (self.reasoning, self.calls)
        return tuple(marker for part in parts if part is not None for marker in (part.open, part.close))


PLAIN: Final = Dialect("plain")
HERMES_CALLS: Final = JsonCalls()
THINK: Final = ReasoningFormat()

# Templates that use the same markers around something that is not a JSON object (Qwen3-Coder, GLM).
_OTHER_CALLS: Final = ("<function=", "<arg_key>")


def recognise(template: str) -> Dialect:
    """The dialect that a chat template (its source) teaches the model."""
    thinks = THINK.open in template and THINK.close in template
    hermes = HERMES_CALLS.open in template and not any(mark in template for mark in _OTHER_CALLS)
    return Dialect(
        name="hermes" if hermes else "plain",
        reasoning=THINK if thinks else None,
        calls=HERMES_CALLS if hermes else None,
    )
