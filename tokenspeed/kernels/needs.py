# SPDX-License-Identifier: MIT
"""What a kernel needs of a layer and of a device, as data.

In: `Needs(device="cpu", head_dim={64, 128}, width=MultipleOf(32))`, written where a kernel is declared. Out:
conditions that can be tested (`select`), put in words (refusals, support table) and crossed (test grid). A
condition tests one value and knows nothing of the others. `TraitValue` is what a fact about a layer may be;
`Traits` are such facts by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

TraitValue = torch.dtype | bool | int | str
Traits = Mapping[str, TraitValue]

FACTS = ("device", "sm", "isa")
"""Needs that speak of the device; every other name is a trait of the op."""

TYPE_OF_FACT = {"sm": "cuda", "isa": "cpu"}
"""The only type of device that has the fact: needing the one is needing the other."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """The value is a member."""

    members: frozenset[Any]

    def holds(self, value: Any) -> bool:
        return value in self.members

    def __str__(self) -> str:
        return " or ".join(show(member) for member in sorted(self.members, key=_rank))


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The value is this or more; tuples (`sm`) compare as versions."""

    least: Any

    def holds(self, value: Any) -> bool:
        return value is not None and value >= self.least

    def __str__(self) -> str:
        return f">= {show(self.least)}"


@dataclass(frozen=True, slots=True)
class AtMost:
    """The value is this or less."""

    most: Any

    def holds(self, value: Any) -> bool:
        return value is not None and value <= self.most

    def __str__(self) -> str:
        return f"<= {show(self.most)}"


@dataclass(frozen=True, slots=True)
class MultipleOf:
    """The value is a whole multiple."""

    unit: int

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and value % self.unit == 0

    def __str__(self) -> str:
        return f"a multiple of {self.unit}"


@dataclass(frozen=True, slots=True)
class Contains:
    """The value is a set that holds all of these (instruction sets of a processor)."""

    members: frozenset[str]

    def holds(self, value: Any) -> bool:
        return self.members <= value

    def __str__(self) -> str:
        return " and ".join(sorted(self.members))


Condition = OneOf | AtLeast | AtMost | MultipleOf | Contains


@dataclass(frozen=True, slots=True, init=False)
class Needs:
    """The conditions under which a kernel is right and meant to be used: `Needs(sm=(9, 0), latent={512})`.

    A plain value means exactly that value, a collection means one of its members, and for `isa` all of its
    members. `device` is the device type ("cpu", "cuda"), `sm` the compute capability, `isa` instruction sets
    (each implies the device type that has it); the rest are traits.
    """

    conditions: tuple[tuple[str, Condition], ...]

    def __init__(self, **conditions: Condition | Collection[Any] | TraitValue) -> None:
        types = {TYPE_OF_FACT[name] for name in conditions if name in TYPE_OF_FACT}
        whole = {"device": types, **conditions} if types else conditions
        object.__setattr__(self, "conditions", tuple((k, _condition(k, v)) for k, v in whole.items()))

    def __iter__(self) -> Iterator[tuple[str, Condition]]:
        return iter(self.conditions)

    def get(self, name: str) -> Condition | None:
        """Return the condition on `name`, None when anything will do."""
        return dict(self.conditions).get(name)

    def __str__(self) -> str:
        return ", ".join(f"{name} {condition}" for name, condition in self.conditions) or "nothing"


def _condition(name: str, value: Any) -> Condition:
    if isinstance(value, Condition):
        return value
    if name == "isa":
        return Contains(frozenset({value} if isinstance(value, str) else value))
    if isinstance(value, set | frozenset | list):
        return OneOf(frozenset(value))
    return OneOf(frozenset({value}))


def _rank(member: Any) -> Any:
    return show(member) if isinstance(member, torch.dtype) else member


def show(value: Any) -> str:
    """Write a trait or fact as people do: `bfloat16`, `9.0`, `yes`."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ".".join(str(part) for part in value)
    if isinstance(value, frozenset):
        return " ".join(sorted(value)) or "none"
    return "none" if value is None else str(value)
