# SPDX-License-Identifier: MIT
"""Hold a kernel against its op: the same check for our kernels, in our tests, and for a plugin's, in its own.

In: an op, a kernel, a device. Out: `grid` yields the traits to try, derived from the kernel's needs; `faults`
runs one call and says in words what is wrong with it, nothing when all is well. A call is right when its
outputs and everything it writes agree with the reference computed in float64 from the same numbers, when
every element of an output is written (memory is poisoned first), and when arguments that are not its to write
come back bit for bit.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.fp8 import E4M3, Heads, Latents
from tokenspeed.kernels.needs import (
    AtLeast,
    AtMost,
    Condition,
    MultipleOf,
    Needs,
    OneOf,
    Traits,
    TraitValue,
    show,
)
from tokenspeed.kernels.spec import Implementation, Inputs, Kernel, Op, Sizes, Tolerance, Trait

STEP = Tolerance(2.0**-9, 2.0**-3)
"""Of e4m3: what lies between two of its numbers may be rounded to either."""
TRIES = 200
"""Random combinations tried to fit one trait value into a legal whole."""


def grid(op: Op, needs: Needs, seed: int = 0) -> Iterator[Traits]:
    """Yield legal combinations of traits a kernel holds for, until every two values have met where they may.

    Raises SetupError when the needs leave nothing to try.
    """
    chance = random.Random(f"{op.name} {needs} {seed}")
    values = {trait.name: _values(op, trait, needs) for trait in op.traits}
    for name, candidates in values.items():
        if not candidates:
            raise SetupError(f"{op.name}: no value of {name} satisfies {needs}")
    met: set[frozenset[tuple[str, TraitValue]]] = set()
    choices = [[(name, value) for value in candidates] for name, candidates in values.items()]
    for one, other in itertools.combinations_with_replacement(choices, 2):
        for pair in itertools.product(one, other):
            if frozenset(pair) in met or len(dict(pair)) < len(set(pair)):
                continue
            for _ in range(TRIES):
                traits = {name: chance.choice(candidates) for name, candidates in values.items()} | dict(pair)
                if op.legal(traits) is None:
                    met.update(map(frozenset, itertools.combinations_with_replacement(traits.items(), 2)))
                    yield traits
                    break
    if not met:
        raise SetupError(f"{op.name}: no legal combination of traits satisfies {needs}")


def _values(op: Op, trait: Trait, needs: Needs) -> list[TraitValue]:
    condition = needs.get(trait.name)
    match condition:
        case None:
            values = list(trait.grid)
        case OneOf(members):
            values = sorted(members, key=show)
        case _:
            values = [value for value in trait.grid if condition.holds(value)] or _edges(condition)
    return [value for value in values if trait.name != "dtype" or value in op.tolerance]


def _edges(condition: Condition) -> list[TraitValue]:
    match condition:
        case MultipleOf(unit):
            return [unit, 3 * unit]
        case AtLeast(edge) | AtMost(edge):
            return [edge]
        case _:
            return []


def faults(op: Op, kernel: Kernel, traits: Traits, sizes: Sizes, device: Device, seed: int) -> list[str]:
    """Run one call in every way the op allows and list what is wrong."""
    inputs = op.inputs(traits, sizes, Draw(seed, device.torch))
    want = _run(op.reference(traits, device), inputs, _doubled)
    found: list[str] = []
    for way in _ways(inputs):
        with poisoned():
            got = _run(kernel.build(traits, device), inputs, twin, way, op.result_dtype(traits))
        found += [f"{way}: {fault}" for fault in _compare(op, traits, inputs, way, got, want)]
    return found


NEW, OUT = "new output", "out="


def _ways(inputs: Inputs) -> Iterator[str]:
    yield NEW
    if inputs.out is not None:
        yield OUT
    if inputs.out_may_be:
        yield OUT + inputs.out_may_be


@dataclass(frozen=True, slots=True)
class _Outcome:
    outputs: tuple[Tensor, ...]
    args: Mapping[str, Any]  # as the call left them


def _run(
    implementation: Implementation,
    inputs: Inputs,
    copied: Callable[[Any], Any],
    way: str = NEW,
    dtype: torch.dtype = torch.float64,
) -> _Outcome:
    args = {name: copied(value) for name, value in inputs.args.items()}
    if inputs.weights:
        assert implementation.prepare is not None, "the op prepares weights, the kernel has no prepare"
        prepared = implementation.prepare(*(copied(weight) for weight in inputs.weights))
        args |= zip(inputs.weights_as, prepared if len(inputs.weights_as) > 1 else (prepared,), strict=True)
    if way == OUT:
        assert inputs.out is not None
        args["out"] = torch.empty(inputs.out, dtype=dtype, device=args[next(iter(args))].device)
    elif way != NEW:
        args["out"] = args[way.removeprefix(OUT)]
    returned = implementation.call(**args)
    return _Outcome(returned if isinstance(returned, tuple) else (returned,), args)


def _compare(
    op: Op, traits: Traits, inputs: Inputs, way: str, got: _Outcome, want: _Outcome
) -> Iterator[str]:
    if way != NEW and got.outputs[0].data_ptr() != got.args["out"].data_ptr():
        yield "the result is not the tensor given as out"
    dtype = op.result_dtype(traits)
    worked = traits.get("dtype", dtype)
    assert isinstance(worked, torch.dtype)
    tolerance = op.tolerance[worked]
    for i, pair in enumerate(zip(op.canonical(got.outputs), op.canonical(want.outputs), strict=True)):
        if fault := _difference(*pair, dtype, tolerance):
            yield f"output {i} {fault}"
    for name in inputs.mutates:
        planes = (_planes(args[name]) for args in (got.args, want.args, inputs.args))
        for got_plane, want_plane, before in zip(*planes, strict=True):
            allowed = STEP if before.dtype is E4M3 else tolerance
            if fault := _difference(got_plane, want_plane, before.dtype, allowed):
                yield f"{name} {fault}"
    free = {*inputs.mutates, *inputs.scratch, way.removeprefix(OUT)}
    for name, value in inputs.args.items():
        pairs = zip(_planes(got.args[name]), _planes(value), strict=True)
        if name not in free and not all(itertools.starmap(_identical, pairs)):
            yield f"{name} was changed"


def _difference(got: Tensor, want: Tensor, dtype: torch.dtype, tolerance: Tolerance) -> str | None:
    dtype = dtype if want.is_floating_point() else want.dtype
    if got.shape != want.shape or got.dtype != dtype:
        return f"is {show(got.dtype)} {list(got.shape)}, not {show(dtype)} {list(want.shape)}"
    result, truth = got.double(), want.double()
    near = (result == truth) | (
        (result - truth).abs() <= tolerance.absolute + tolerance.relative * truth.abs()
    )
    if bool(near.all()) if want.is_floating_point() else torch.equal(got, want):
        return None
    where = (~near).nonzero()[0].tolist()
    return (
        f"differs at {int((~near).sum())} of {near.numel()} places, first {where}: "
        f"{result[tuple(where)]:.6g}, reference {truth[tuple(where)]:.6g}"
    )


def _planes(value: Any) -> tuple[Tensor, ...]:
    """The tensors an argument is made of; none where it is no tensor."""
    return (
        (value,) if isinstance(value, Tensor) else tuple(value) if isinstance(value, Latents | Heads) else ()
    )


def _doubled(value: Any) -> Any:
    if isinstance(value, Latents | Heads):
        return type(value)(*map(_doubled, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else twin(value)


def twin(value: Any) -> Any:
    """Copy a tensor with its strides; what lies between its elements stays unset, that is, poisoned."""
    if isinstance(value, Latents | Heads):
        return type(value)(*map(twin, value))
    if not isinstance(value, Tensor):
        return value
    with poisoned():
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).copy_(
            value
        )


def _identical(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@contextmanager
def poisoned() -> Generator[None]:
    """Make torch fill fresh memory with NaN or the largest integer: part of its deterministic mode."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
