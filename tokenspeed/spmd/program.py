# SPDX-License-Identifier: MIT
"""The linear program: what layers declare, what the compiler makes of it, and how it runs and prints.

Layers declare `Call`s in execution order; each reads and writes named values ("hidden", "residual", "qkv",
...) with a layout per edge. `compile` turns them into `Step`s, with every lie decided and every collective
inserted. `Program.lower` numbers the values, finds where each dies, and returns the loop that runs a model.

This file knows neither tensors nor torch: a value is whatever a call returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from tokenspeed.base.errors import SetupError
from tokenspeed.dist.mesh import Mesh
from tokenspeed.spmd.placement import Layout, Lie, Lies, show


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a checkpoint that fills a region of a weight.

    `units` counts what must not be cut along dim 0 (heads of a projection); 0 means single rows. With
    `repeats`, fewer units than ranks are held by several ranks each (kv heads); else that is refused.
    """

    source: str
    shape: tuple[int, ...]
    units: int = 0
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight a call uses: where it lies, and the checkpoint tensors it is made of.

    `parts[i][j]`: parts of one inner tuple are joined along their dim 0 (q, k, v; gate, up); with `stacked`,
    the outer index is a new leading dimension (experts), else there is one inner tuple. Dims of `layout`
    count the weight as whole: dim 0 of a stacked weight is the expert. `fill` is what random weights hold.
    """

    name: str
    parts: tuple[tuple[Part, ...], ...]
    layout: Layout = ()
    stacked: bool = False
    dtype: str = "model"
    fill: str = "normal"


@dataclass(frozen=True, slots=True)
class Edge:
    """A value as a call reads or writes it.

    Writes state its size, for the cost of moving it: `columns` when whole, `item_bytes` where it is not of
    the program's dtype. A `packed` value joins several pieces, each spread on its own ([q | k | v]): no
    collective may move its columns. A `fixed` value means something on its rank only (row indices): no
    collective may move it.
    """

    value: str
    layout: Layout = ()
    columns: int = 0
    item_bytes: int = 0
    packed: bool = False
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Joint:
    """How a call runs as one with a call of `op` right before it, where nothing moves between them.

    `run(context, constants, *reads)` takes the constants and the reads of the call before; it returns all that
    the one writes, then all that the other writes.
    """

    op: str
    run: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One op over named values; `run(context, *reads)` returns what is written, a tuple if several.

    `constants` gives what a call after this one needs to do its work too (weights, once they are there).
    """

    name: str
    op: str
    reads: tuple[Edge, ...]
    writes: tuple[Edge, ...]
    run: Callable[..., Any]
    weights: tuple[Weight, ...] = ()
    constants: Callable[[], Any] | None = None
    joint: Joint | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """A value as a compiled step reads or writes it."""

    value: str
    lies: Lies
    columns: int = 0
    item_bytes: int = 0
    packed: bool = False
    fixed: bool = False

    def moves(self, was: Lie, now: Lie) -> bool:
        """Whether a collective may take this value from one lie to the other, if one can."""
        return not self.fixed and not (self.packed and "S1" in (was, now))


@dataclass(frozen=True, slots=True)
class Collective:
    """A move of one value along one axis; a rank sends `bytes_per_row` for each row of the whole value."""

    kind: str
    axis: str
    dim: int
    bytes_per_row: int


@dataclass(frozen=True, slots=True)
class Step:
    """A call with every lie decided, or a collective: then `op` is its kind and `run` is not used."""

    name: str
    op: str
    reads: tuple[Use, ...]
    writes: tuple[Use, ...]
    run: Callable[..., Any]
    weights: tuple[Lies, ...] = ()
    collective: Collective | None = None
    constants: Callable[[], Any] | None = None
    joint: Joint | None = None


class Collectives(Protocol):
    """What a program of several ranks moves data with; see `tokenspeed.dist.groups`."""

    def move(self, kind: str, value: Any, *, axis: str, dim: int) -> Any:
        """Return `value` after the collective `kind` over `axis`, along `dim` where it has a dimension."""
        ...


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled model: steps in order, the values it starts from, the one it ends with."""

    title: str
    mesh: Mesh
    axes: tuple[str, ...]
    inputs: tuple[Use, ...]
    output: Use
    steps: tuple[Step, ...]

    @property
    def collectives(self) -> tuple[Collective, ...]:
        return tuple(step.collective for step in self.steps if step.collective is not None)

    def lower(self, collectives: Collectives | None = None) -> Executable:
        """Number the values, join calls that can run as one, and return the runnable loop.

        Raises SetupError when the program moves data and there is nothing to move it with.
        """
        if self.collectives and collectives is None:
            raise SetupError(f"{self.title} on mesh {self.mesh} needs collectives; none were given")
        return _lower(self, collectives)

    def __str__(self) -> str:
        return _table(self)


@dataclass(slots=True)
class _Instruction:
    run: Callable[..., Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    dead: tuple[int, ...] = ()


@dataclass(slots=True)
class Executable:
    """A program as it runs: values are numbers, each is dropped after its last reader."""

    _instructions: list[_Instruction]
    _inputs: tuple[int, ...]
    _output: int
    _values: int
    names: tuple[str, ...] = field(default=())

    def run(self, context: Any, *inputs: Any) -> Any:
        """Run every step. `context` goes to each call as it is; `inputs` are in the program's order."""
        values: list[Any] = [None] * self._values
        for index, value in zip(self._inputs, inputs, strict=True):
            values[index] = value
        for step in self._instructions:
            result = step.run(context, *[values[index] for index in step.reads])
            for index in step.dead:
                values[index] = None
            if len(step.writes) == 1:
                values[step.writes[0]] = result
            else:
                for index, value in zip(step.writes, result, strict=True):
                    values[index] = value
            del result
        return values[self._output]


def _lower(program: Program, collectives: Collectives | None) -> Executable:
    numbers: dict[str, int] = {}

    def number(uses: Sequence[Use]) -> tuple[int, ...]:
        return tuple(numbers.setdefault(use.value, len(numbers)) for use in uses)

    inputs = number(program.inputs)
    instructions: list[_Instruction] = []
    for at, step in enumerate(program.steps):
        joined = _joined(program.steps[at - 1], step) if at else None
        if joined is None:
            run = _runnable(step, collectives)
            instructions.append(_Instruction(run, number(step.reads), number(step.writes)))
        else:
            before = instructions.pop()
            instructions.append(_Instruction(joined, before.reads, before.writes + number(step.writes)))
    output = numbers[program.output.value]
    alive = {output}
    for step in reversed(instructions):
        alive -= set(step.writes)
        step.dead = tuple(index for index in dict.fromkeys(step.reads) if index not in alive)
        alive |= set(step.reads)
    return Executable(instructions, inputs, output, len(numbers), tuple(step.name for step in program.steps))


def _runnable(step: Step, collectives: Collectives | None) -> Callable[..., Any]:
    move = step.collective
    if move is None or collectives is None:
        return step.run

    def run(_context: Any, value: Any) -> Any:
        return collectives.move(move.kind, value, axis=move.axis, dim=move.dim)

    return run


def _joined(before: Step, step: Step) -> Callable[..., Any] | None:
    """What runs both steps as one; None where they run apart."""
    made = {use.value for use in before.writes}
    if step.joint is None or step.joint.op != before.op or before.constants is None:
        return None
    if any(use.value not in made for use in step.reads):
        return None
    return partial(_run_joined, step.joint.run, before.constants())


def _run_joined(run: Callable[..., Any], constants: Any, context: Any, *values: Any) -> Any:
    return run(context, constants, *values)


def _table(program: Program) -> str:
    head = ("step", "op", "reads", "weights", "writes", "bytes/row")
    rows: list[tuple[str, ...]] = [head]
    for step in program.steps:
        rows.append(
            (
                step.name,
                step.op if step.collective is None else f"{step.op}({step.collective.axis})",
                ", ".join(f"{use.value}:{show(use.lies)}" for use in step.reads),
                ", ".join(show(lies) for lies in step.weights) or "-",
                ", ".join(f"{use.value}:{show(use.lies)}" for use in step.writes),
                "" if step.collective is None else str(step.collective.bytes_per_row),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    total = sum(collective.bytes_per_row for collective in program.collectives)
    closing = f"{len(program.collectives)} collectives, {total} bytes sent per rank and row"
    return "\n".join([f"{program.title} on {program.mesh}", *lines, closing]) + "\n"
