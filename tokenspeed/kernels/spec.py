# SPDX-License-Identifier: MIT
"""What an op, a kernel and a kernel's needs are: plain values, and the checks that make them well formed.

In: declarations written by `api/` (ops) and by backends and plugins (kernels). Out: frozen values that `registry`
collects, `select` judges, `explain` prints, the test harness crosses and the benchmark times. Nothing here chooses,
loads or runs a kernel.

An `Op` is a public function with a reference, a shape generator, tolerances and a cost model; a `Kernel` is one
implementation of it. What a kernel needs is data (`Needs`), so that selection, refusal text, support table and test grid
are four readings of one declaration.

Shapes, here and in every op: T tokens, R rows, H query heads, K kv heads, D head dim, L latent, N blocks, P tokens per
block, V vocab, E experts, F ffn.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.draw import Draw

TraitValue = torch.dtype | bool | int | str
Traits = Mapping[str, TraitValue]


class Band(enum.IntEnum):
    """How good a kernel is where its needs hold. The highest band wins; two kernels of one band must never both hold."""

    REF = 0
    """The reference: right everywhere, fast nowhere."""
    GENERIC = 10
    """A library call or a portable kernel."""
    FAST = 20
    """Written for this class of device."""
    TUNED = 30
    """Written for these very shapes on this very device."""


# --- conditions: what one trait or device fact must be -------------------------------------------------------------


class Condition(Protocol):
    """A test of one value that can say itself in words and can meet another condition."""

    def holds(self, value: Any) -> bool: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class OneOf:
    """The value is a member."""

    members: frozenset[Any]

    def holds(self, value: Any) -> bool:
        return value in self.members

    def __str__(self) -> str:
        return " or ".join(sorted(show(member) for member in self.members))


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


FACTS = ("device", "sm", "isa")
"""Needs that speak of the device; every other name is a trait of the op."""


@dataclass(frozen=True, slots=True, init=False)
class Needs:
    """The conditions under which a kernel is right and meant to be used: `Needs(sm=(9, 0), latent={512})`.

    A plain value means exactly that value, a collection means one of its members, and for `isa` all of its members.
    `device` is the device type ("cpu", "cuda"), `sm` the compute capability, `isa` instruction sets; the rest are traits.
    """

    conditions: tuple[tuple[str, Condition], ...]

    def __init__(self, **conditions: Condition | Collection[Any] | TraitValue) -> None:
        object.__setattr__(self, "conditions", tuple((k, _condition(k, v)) for k, v in conditions.items()))

    def __iter__(self):  # noqa: ANN204
        return iter(self.conditions)

    def get(self, name: str) -> Condition | None:
        """Return the condition on `name`, None when anything will do."""
        return dict(self.conditions).get(name)

    def __str__(self) -> str:
        return ", ".join(f"{name} {condition}" for name, condition in self.conditions) or "nothing"


def _condition(name: str, value: Any) -> Condition:
    if isinstance(value, OneOf | AtLeast | AtMost | MultipleOf | Contains):
        return value
    if name == "isa":
        return Contains(frozenset({value} if isinstance(value, str) else value))
    if isinstance(value, set | frozenset | list):
        return OneOf(frozenset(value))
    return OneOf(frozenset({value}))


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


# --- kernels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Implementation:
    """A kernel built for one set of traits: what a layer will call, and what it calls once on its weights."""

    call: Callable[..., Any]
    prepare: Callable[..., Any] | None = None


Build = Callable[[Traits, Device], Implementation]


@dataclass(frozen=True, slots=True)
class Plain:
    """The `Build` of a kernel that is stateless functions; the named traits are bound into them as keywords."""

    call: Callable[..., Any]
    prepare: Callable[..., Any] | None = None
    call_traits: tuple[str, ...] = ()
    prepare_traits: tuple[str, ...] = ()

    def __call__(self, traits: Traits, device: Device) -> Implementation:
        return Implementation(
            _bound(self.call, traits, self.call_traits),
            None if self.prepare is None else _bound(self.prepare, traits, self.prepare_traits),
        )


def _bound(function: Callable[..., Any], traits: Traits, names: tuple[str, ...]) -> Callable[..., Any]:
    return partial(function, **{name: traits[name] for name in names}) if names else function


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of an op: its name (unique within the op), where it holds, how good it is, how to build it."""

    op: str
    name: str
    needs: Needs
    band: Band
    build: Build
    source: str = "tokenspeed"
    """Who brought it: `tokenspeed`, or the distribution of a plugin (filled in by the loader)."""


# --- ops -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trait:
    """A fact about a layer, known when it is built, that kernels may depend on. `grid` are the values that tests cross."""

    name: str
    grid: tuple[TraitValue, ...]
    meaning: str
    default: TraitValue | None = None
    """Used when a caller does not say; None means the caller must."""
    choices: tuple[TraitValue, ...] = ()
    """All legal values, where they can be listed."""

    def fault(self, value: TraitValue) -> str | None:
        """Say what is wrong with `value`, None when it is legal."""
        kind = type(self.grid[0])
        if type(value) is not kind:
            return f"{self.name} must be {kind.__name__}, got {value!r}"
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(map(show, self.choices))}, got {show(value)}"
        if kind is int and isinstance(value, int) and value < 1:
            return f"{self.name} must be at least 1, got {value}"
        return None


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one call, which may change from step to step (traits may not)."""

    tokens: int = 0
    """T, for ops without context."""
    contexts: tuple[int, ...] = ()
    """Tokens of context of each row, this step's included."""
    lengths: tuple[int, ...] = ()
    """New tokens of each row; empty means one each."""

    def __str__(self) -> str:
        if not self.contexts:
            return f"T={self.tokens}"
        lengths = self.lengths or (1,) * len(self.contexts)
        return f"R={len(self.contexts)} new={_span(lengths)} ctx={_span(self.contexts)}"


def _span(values: tuple[int, ...]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}..{high}"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of one call, drawn at random by seed."""

    args: Mapping[str, Any]
    """In the order of the signature, without prepared weights."""
    weights: tuple[Any, ...] = ()
    """Arguments of `prepare`; its result is passed as `weights_as`."""
    weights_as: tuple[str, ...] = ()
    """Name of the argument that takes the prepared weights; several names when `prepare` returns a tuple of them."""
    mutates: tuple[str, ...] = ()
    """Arguments the op writes: compared like outputs."""
    scratch: tuple[str, ...] = ()
    """Arguments a kernel may overwrite as it likes; all others must come back untouched."""
    out: tuple[int, ...] | None = None
    """Shape of the output that `out=` takes; None where the op has no `out`."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|kernel - reference in float64| <= absolute + relative * |reference|, elementwise."""

    absolute: float
    relative: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The least work a call can cost: bytes that must move, floating point operations that must happen."""

    bytes: int
    flop: int


@dataclass(frozen=True, slots=True)
class Point:
    """One benchmark question: these traits, these sizes."""

    traits: Traits
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Op:
    """A public function of the kernel layer. Complete or refused: see `fault`."""

    name: str
    doc: str
    """One sentence, then shapes, effects and source."""
    traits: tuple[Trait, ...]
    reference: Plain
    sizes: tuple[Sizes, ...]
    """What the harness runs."""
    points: tuple[Point, ...]
    """What the benchmark times."""
    inputs: Callable[[Traits, Sizes, Draw], Inputs]
    tolerance: Mapping[torch.dtype, Tolerance]
    cost: Callable[[Traits, Sizes], Cost]
    legal: Callable[[Traits], str | None] = field(default=lambda traits: None)
    """What is wrong with a combination of traits, None when it makes sense."""
    canonical: Callable[[Any], Any] = field(default=lambda outputs: outputs)
    """Brings outputs that may legally differ in order to one order before they are compared."""

    @property
    def signature(self) -> str:
        """How the op is called, from its reference: the traits bound at construction are left out."""
        return _signature(self.reference.call, self.reference.call_traits)

    @property
    def prepare_signature(self) -> str | None:
        """How weights are prepared, None when the op has none."""
        prepare = self.reference.prepare
        return None if prepare is None else _signature(prepare, self.reference.prepare_traits)

    def fault(self) -> str | None:
        """Say what makes this op unfit for registration, None when it is complete."""
        missing = [
            what
            for what, there in (
                ("a reference", callable(self.reference)),
                ("a shape generator", bool(self.sizes) and callable(self.inputs)),
                ("a tolerance", bool(self.tolerance)),
                ("a cost model", callable(self.cost)),
                ("a documented meaning", bool(self.doc.strip())),
            )
            if not there
        ]
        return f"op {self.name!r} has no {' and no '.join(missing)}" if missing else None

    def complete(self, traits: Traits) -> dict[str, TraitValue]:
        """Check a caller's traits against the schema and fill defaults in. Raises SetupError naming every fault."""
        known = {trait.name: trait for trait in self.traits}
        faults = [f"unknown trait {name!r}" for name in traits if name not in known]
        whole: dict[str, TraitValue] = {}
        for name, trait in known.items():
            value = traits.get(name, trait.default)
            if value is None:
                faults.append(f"{name} is missing ({trait.meaning})")
                continue
            fault = trait.fault(value)
            faults.extend([fault] if fault else [])
            whole[name] = value
        if not faults:
            fault = self.legal(whole)
            faults.extend([fault] if fault else [])
        if faults:
            raise SetupError(f"{self.name}: {'; '.join(faults)}. Its traits are: {', '.join(known)}")
        return whole


def _signature(function: Callable[..., Any], bound: tuple[str, ...]) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in bound]
    shown: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default}"
        shown.append(parameter.name + default)
    return f"({', '.join(shown)})"
