# SPDX-License-Identifier: MIT
"""What an op, a kernel and a kernel's needs are: plain values, and the checks that make them well formed.

In: declarations written by `api/` (ops) and by backends and plugins (kernels). Out: frozen values that
`registry` collects, `select` judges, `explain` prints, the test harness crosses and the benchmark times.
Nothing here chooses, loads or runs a kernel.

An `Op` is a public function with a reference, a shape generator, tolerances and a cost model; a `Kernel` is
one implementation of it. What a kernel needs is data (`Needs`), so that selection, refusal text, support
table and test grid are four readings of one declaration.

Shapes, here and in every op: T tokens, R rows, H query heads, K kv heads, D head dim, L latent, N blocks, P
tokens per block, V vocab, E experts, F ffn.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.needs import Needs, Traits, TraitValue, show


class Band(enum.IntEnum):
    """How good a kernel is where its needs hold. The highest band wins; kernels of one band must not meet."""

    REF = 0
    """The reference: right everywhere, fast nowhere."""
    GENERIC = 10
    """A library call or a portable kernel."""
    FAST = 20
    """Written for this class of device."""
    TUNED = 30
    """Written for these very shapes on this very device."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """A kernel built for one set of traits: what a layer will call, what it calls once on its weights, and
    once a step for all layers.
    """

    call: Callable[..., Any]
    prepare: Callable[..., Any] | None = None
    schedule: Callable[..., Any] | None = None
    """What the layers of a step share; its result is passed to `call` as `schedule`."""
    shares: bool = False
    """Blocks that rows share are worth telling it of: `call` and `schedule` take `shared`."""


Build = Callable[[Traits, Device], Implementation]


@dataclass(frozen=True, slots=True)
class Plain:
    """The `Build` of a kernel that is stateless functions; named traits are bound into them as keywords."""

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
    """One implementation of an op: its name (unique within the op), where it holds, how good it is."""

    op: str
    name: str
    needs: Needs
    band: Band
    build: Build
    source: str = "tokenspeed"
    """Who brought it: `tokenspeed`, or the distribution of a plugin (filled in by the loader)."""


@dataclass(frozen=True, slots=True)
class Trait:
    """A fact about a layer that kernels may depend on. `grid` holds the values that tests cross."""

    name: str
    grid: tuple[TraitValue, ...]
    meaning: str
    default: TraitValue | None = None
    """Used when a caller does not say; None means the caller must."""
    choices: tuple[TraitValue, ...] = ()
    """All legal values, where they can be listed."""
    least: int = 1
    """The smallest legal number, of a trait that counts."""

    def fault(self, value: TraitValue) -> str | None:
        """Say what is wrong with `value`, None when it is legal."""
        kind = type(self.grid[0])
        if type(value) is not kind:
            return f"{self.name} must be {kind.__name__}, got {value!r}"
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(map(show, self.choices))}, got {show(value)}"
        if kind is int and isinstance(value, int) and value < self.least:
            return f"{self.name} must be at least {self.least}, got {value}"
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
    """Name of the argument that takes the prepared weights; several when `prepare` returns a tuple."""
    mutates: tuple[str, ...] = ()
    """Arguments the op writes: compared like outputs."""
    scratch: tuple[str, ...] = ()
    """Arguments a kernel may overwrite as it likes; all others must come back untouched."""
    out: tuple[int, ...] | None = None
    """Shape of the output that `out=` takes; None where the op has no `out`."""
    out_may_be: str = ""
    """The argument that may itself be passed as `out`."""


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
    summary: str
    """What it does, one imperative sentence."""
    shapes: str
    """Arguments and result with their shapes, strides and effects."""
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
    prepare_shapes: str = ""
    """The same of `prepare`, where there is one."""
    source: str = ""
    """Paper or model card that defines it, where there is one."""
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
                ("documented shapes", bool(self.summary and self.shapes)),
            )
            if not there
        ]
        return f"op {self.name!r} has no {' and no '.join(missing)}" if missing else None

    def result_dtype(self, traits: Traits) -> torch.dtype:
        """Return the dtype of floating outputs: the trait `dtype`, float32 by trait, or the only one the op has."""
        if traits.get("float32_out"):
            return torch.float32
        dtype = traits.get("dtype", next(iter(self.tolerance)))
        assert isinstance(dtype, torch.dtype)
        return dtype

    def complete(self, traits: Traits) -> dict[str, TraitValue]:
        """Check traits against the schema and fill defaults in. Raises SetupError naming every fault."""
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
