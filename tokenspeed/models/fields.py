# SPDX-License-Identifier: MIT
"""Typed reading of a Hugging Face `config.json`: a wrong or missing field is a SetupError that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenspeed.base.errors import SetupError


@dataclass(frozen=True, slots=True)
class Fields:
    """The mapping, and readers that check. A field that is null counts as absent."""

    values: Mapping[str, Any]

    def count(self, name: str, default: int | None = None, *, also: str = "") -> int:
        """A whole number; `default` when absent. At least 1, or 0 where that is the default.

        `also` is a second spelling that some writers use.
        """
        value = self.values.get(name)
        if value is None:
            value = self.values.get(also)
        if value is None:
            value = default
        if value is None:
            raise SetupError(f"config.json lacks {name}, a whole number")
        if isinstance(value, bool) or not isinstance(value, int):
            raise SetupError(f"config.json: {name} is {value!r}; it must be a whole number")
        least = 0 if default == 0 else 1
        if value < least:
            raise SetupError(f"config.json: {name} is {value}; it must be at least {least}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number; `default` when absent."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SetupError(f"config.json: {name} is {value!r}; it must be a number")
        return float(value)

    def section(self, *names: str) -> Fields:
        """The first of these objects that is there and not empty; an empty one when none is."""
        for name in names:
            value: Any = self.values.get(name)
            if value and not isinstance(value, Mapping):
                raise SetupError(f"config.json: {name} is {value!r}; it must be an object")
            if value:
                return Fields(value)
        return Fields({})

    def flag(self, name: str, default: bool) -> bool:
        """True or false; `default` when absent."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SetupError(f"config.json: {name} is {value!r}; it must be true or false")
        return value

    def word(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        """One of `choices`; `default` when absent."""
        value = self.values.get(name)
        if value is None:
            return default
        if value not in choices:
            raise SetupError(f"config.json: {name} is {value!r}; supported: {', '.join(choices)}")
        return str(value)

    def is_a(self, word: str) -> bool:
        """Whether the architecture, or else the model type, has `word` in its name."""
        named = self.values.get("architectures") or [self.values.get("model_type", "")]
        return any(word in str(name).lower() for name in named)

    def must_be_off(self, name: str, why: str) -> None:
        """Refuse a config that turns on what is not built."""
        if self.values.get(name):
            raise SetupError(f"config.json: {name} is {self.values[name]!r}; {why}")
