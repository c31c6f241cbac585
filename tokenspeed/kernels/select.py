# SPDX-License-Identifier: MIT
"""Choose the kernel of an op: a pure function that accounts for every kernel it did not choose.

In: a registry, an op's name, traits, a device, an optional override. Out: a `Choice` with the kernel and, for
every other kernel, why not. It reads no clock, no environment, no device: the same arguments give the same
choice, for a device one has as for one that one has not. `load.bind` builds what it returns; `explain` prints
it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import FACTS, Needs, Traits, show
from tokenspeed.kernels.registry import Registry
from tokenspeed.kernels.spec import Kernel


@dataclass(frozen=True, slots=True)
class Refusal:
    """A kernel that was not chosen and all the reasons."""

    kernel: Kernel
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel that will run, and the account of the others (best band first)."""

    op: str
    kernel: Kernel
    traits: Traits
    device: Device
    reason: str
    refusals: tuple[Refusal, ...]


def select(
    registry: Registry, op: str, traits: Traits, device: Device, override: str | None = None
) -> Choice:
    """Choose the kernel of the highest band whose needs hold, or the one named by `override` if its needs
    hold.

    Raises SetupError for an unknown op, faulty traits, an unknown override, and an override whose needs do
    not hold.
    """
    whole = registry.op(op).complete(traits)
    kernels = registry.kernels(op)
    unmet = {kernel.name: unmet_needs(kernel.needs, whole, device) for kernel in kernels}
    if override is None:
        chosen = next(kernel for kernel in kernels if not unmet[kernel.name])
        reason = f"best band that holds ({chosen.band.name})"
    else:
        chosen = _overridden(op, override, kernels, unmet)
        reason = "named by an override"
    refusals = tuple(
        Refusal(kernel, unmet[kernel.name] or (_outranked(kernel, chosen, override),))
        for kernel in kernels
        if kernel is not chosen
    )
    return Choice(op, chosen, whole, device, reason, refusals)


def unmet_needs(needs: Needs, traits: Traits, device: Device) -> tuple[str, ...]:
    """Say, need by need, what does not hold; empty when the kernel may run."""
    facts: dict[str, Any] = {"device": device.type, "sm": device.sm, "isa": device.isa}
    reasons: list[str] = []
    for name, condition in needs:
        value = facts[name] if name in FACTS else traits[name]
        if not condition.holds(value):
            reasons.append(f"needs {name} {condition}, got {show(value)}")
    return tuple(reasons)


def _overridden(
    op: str, name: str, kernels: Iterable[Kernel], unmet: Mapping[str, tuple[str, ...]]
) -> Kernel:
    named = {kernel.name: kernel for kernel in kernels}
    if name not in named:
        raise SetupError(f"override {op}={name}: no such kernel; {op} has {', '.join(named)}")
    if unmet[name]:
        usable = ", ".join(other for other, reasons in unmet.items() if not reasons)
        raise SetupError(
            f"override {op}={name}: {'; '.join(unmet[name])}. Kernels that can run here: {usable}"
        )
    return named[name]


def _outranked(kernel: Kernel, chosen: Kernel, override: str | None) -> str:
    if override is not None:
        return f"could run; an override names {chosen.name}"
    return f"could run; {chosen.name} is better ({chosen.band.name} over {kernel.band.name})"


@dataclass(frozen=True, slots=True)
class Overrides:
    """Kernels named by the operator: `attention.mla_decode=ref`, `attention.*=ref`; the last match wins."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str], registry: Registry) -> Overrides:
        """Read `op=kernel` texts; a pattern must match an op, and all ops it matches must have the kernel."""
        pairs: list[tuple[str, str]] = []
        for text in texts:
            pattern, equals, name = (part.strip() for part in text.partition("="))
            if not (pattern and equals and name):
                raise SetupError(f"a kernel override reads op=kernel, got {text!r}")
            matched = [op.name for op in registry.ops() if fnmatch.fnmatchcase(op.name, pattern)]
            if not matched:
                registry.op(pattern)
            for op in matched:
                named = [kernel.name for kernel in registry.kernels(op)]
                if name not in named:
                    raise SetupError(f"override {text}: no such kernel; {op} has {', '.join(named)}")
            pairs.append((pattern, name))
        return cls(tuple(pairs))

    def of(self, op: str) -> str | None:
        """Return the kernel named for an op, None when the operator left it to `select`."""
        named = [name for pattern, name in self.pairs if fnmatch.fnmatchcase(op, pattern)]
        return named[-1] if named else None
