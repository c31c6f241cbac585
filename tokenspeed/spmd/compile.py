# SPDX-License-Identifier: MIT
"""The compiler: declared calls and a mesh in, a verified program and weight shards out.

It walks the calls in order, knowing how every live value lies along every axis. For each call and axis it
takes, from the table of `verify`, the rule that agrees with the declared layouts and costs the fewest bytes
to reach, and inserts the collectives that lead there. A move leaves the value it read in place under its old
name, so that a later reader may start from either; a reduction thus waits until somebody needs it (a sum of
two partial values reduces once).

A declaration that no rule satisfies is a SetupError naming the call, the edge, the placements and the legal
rules. It executes nothing and holds no tensor. What it does not do yet: fuse moves, overlap them, or choose
`sp` by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenspeed.base.errors import SetupError
from tokenspeed.dist.mesh import BASE_AXES, Mesh
from tokenspeed.spmd.placement import Layout, Lie, Lies, along, resolve, show
from tokenspeed.spmd.program import Call, Collective, Edge, Part, Program, Step, Use, Weight
from tokenspeed.spmd.verify import MOVES, RULES, Rule, verify
from tokenspeed.weights.parameter import Fill, Parameter


def compile_program(
    title: str,
    calls: Iterable[Call],
    mesh: Mesh,
    *,
    inputs: Sequence[Edge],
    output: Edge,
    item_bytes: int,
) -> Program:
    """Place every call on `mesh` and insert the collectives between them.

    `item_bytes` is the size of one element of the activations, for the printed cost. Raises SetupError on any
    declaration that is inconsistent with the rules, naming the call and the edge.
    """
    axes = tuple(axis for axis in BASE_AXES if mesh.size(axis) > 1)
    walk = _Walk(mesh, axes, item_bytes)
    for edge in inputs:
        walk.write(walk.use(edge, _full(resolve(edge.layout, mesh), axes)))
    for call in calls:
        walk.place(call)
    wants = resolve(output.layout, mesh)
    source = walk.source("output", output.value)
    final = walk.move("output", source, {axis: wants.get(axis, source.lies[axis]) for axis in axes})
    program = Program(
        title=title,
        mesh=mesh,
        axes=axes,
        inputs=tuple(Use(e.value, _full(resolve(e.layout, mesh), axes)) for e in inputs),
        output=final,
        steps=tuple(walk.steps),
    )
    verify(program)
    return program


def _full(lies: Lies, axes: Sequence[str]) -> Lies:
    return {axis: along(lies, axis) for axis in axes}


@dataclass(slots=True)
class _Walk:
    """The state of one compilation: steps so far, and each live value in every form it exists in."""

    mesh: Mesh
    axes: tuple[str, ...]
    item_bytes: int
    steps: list[Step] = field(default_factory=list[Step])
    forms: dict[str, list[Use]] = field(default_factory=dict[str, list[Use]])

    def write(self, use: Use) -> None:
        self.forms[use.value] = [use]

    def use(self, edge: Edge, lies: Lies) -> Use:
        item_bytes = edge.item_bytes or self.item_bytes
        return Use(edge.value, lies, edge.columns, item_bytes, edge.packed, edge.fixed)

    def source(self, reader: str, value: str) -> Use:
        if value not in self.forms:
            raise SetupError(
                f"{reader}: reads {value!r}, which nothing before it writes; values so far: "
                f"{', '.join(sorted(self.forms))}"
            )
        return self.forms[value][0]

    def place(self, call: Call) -> None:
        """Choose a rule per axis, move what is read into place, and append the step."""
        if call.op not in RULES:
            raise SetupError(f"{call.name}: unknown op {call.op!r}; known: {', '.join(RULES)}")
        rules = {axis: self._rule(call, axis) for axis in self.axes}
        reads: list[Use] = []
        for index, edge in enumerate(call.reads):
            goal: Lies = {axis: rules[axis].reads[index] for axis in self.axes}
            reads.append(self.move(call.name, self._nearest(call.name, edge.value, goal), goal))
        writes = tuple(
            self.use(edge, {axis: rules[axis].writes[index] for axis in self.axes})
            for index, edge in enumerate(call.writes)
        )
        weights = tuple(_full(resolve(weight.layout, self.mesh), self.axes) for weight in call.weights)
        self.steps.append(
            Step(
                call.name, call.op, tuple(reads), writes, call.run, weights, None, call.constants, call.joint
            )
        )
        for use in writes:
            self.write(use)

    def move(self, reader: str, use: Use, goal: Lies) -> Use:
        """Append the collectives that bring `use` to `goal`; return the moved value."""
        for axis, was, now in self._route(use.lies, goal):
            kind = MOVES.get((was, now))
            if kind is None or not use.moves(was, now):
                why = "no collective does that" if kind is None else "it is packed or fixed and stays"
                raise SetupError(
                    f"{reader}: edge {use.value!r} along {axis} is {was} and is needed as {now}; {why}"
                )
            lies: Lies = {**use.lies, axis: now}
            moved = replace(use, value=f"{use.value.split('@')[0]}@{show(lies)}", lies=lies)
            collective = Collective(kind, axis, _moved_dim(was, now), self._bytes(use, axis, kind))
            self.steps.append(Step(f"-> {reader}", kind, (use,), (moved,), _never, (), collective))
            self.forms[use.value.split("@")[0]].append(moved)
            use = moved
        return use

    def _route(self, start: Lies, goal: Lies) -> list[tuple[str, Lie, Lie]]:
        """The moves from `start` to `goal`, in an order that keeps slices of slices in axis order.

        Where two axes cut one dimension, the inner one cuts what the outer one left: the outer cut can change
        only while the inner one is open. Else inner axes go first, so that reductions precede gathers.
        """
        lies, moves = dict(start), list[tuple[str, Lie, Lie]]()

        def go(axis: str, to: Lie) -> None:
            if lies[axis] != to:
                moves.append((axis, lies[axis], to))
                lies[axis] = to

        order = tuple(reversed(self.axes))
        for index, inner in enumerate(self.axes):
            changed = {lie for a in self.axes[:index] if start[a] != goal[a] for lie in (start[a], goal[a])}
            cuts = {lie for lie in changed if lie.startswith("S")}
            if start[inner] in cuts:
                go(inner, "R")
            if goal[inner] in cuts:
                order = self.axes
        for axis in order:
            go(axis, goal[axis])
        return moves

    def _rule(self, call: Call, axis: str) -> Rule:
        """The legal rule along `axis` that agrees with the declaration and is cheapest to reach."""
        reads: list[Lie | None] = [self._declared(edge.layout, axis) for edge in call.reads]
        writes: list[Lie | None] = [self._declared(edge.layout, axis) for edge in call.writes]
        weights: tuple[Lie, ...] = tuple(
            along(resolve(weight.layout, self.mesh), axis) for weight in call.weights
        )
        fitting = [
            rule
            for rule in RULES[call.op]
            if rule.weights == weights and _agrees(rule.reads, reads) and _agrees(rule.writes, writes)
        ]
        costs = [self._cost(call, axis, rule) for rule in fitting]
        if not fitting or min(costs) == math.inf:
            raise SetupError(self._refusal(call, axis, weights))
        return fitting[costs.index(min(costs))]

    def _declared(self, layout: Layout, axis: str) -> Lie | None:
        return resolve(layout, self.mesh).get(axis)

    def _cost(self, call: Call, axis: str, rule: Rule) -> float:
        return sum(
            # Of two free choices take the value as written: a gathered copy would repeat work on every rank.
            min(
                self._move_cost(form, axis, want) + ("@" in form.value) / 4
                for form in self._forms(call.name, edge.value)
            )
            for edge, want in zip(call.reads, rule.reads, strict=True)
        )

    def _move_cost(self, use: Use, axis: str, want: Lie) -> float:
        was = use.lies[axis]
        if was == want:
            return 0.0
        kind = MOVES.get((was, want))
        if kind is None or not use.moves(was, want):
            return math.inf
        # A local slice sends nothing, but an op that needs none is simpler: half a byte breaks the tie.
        return self._bytes(use, axis, kind) or 0.5

    def _forms(self, reader: str, value: str) -> list[Use]:
        self.source(reader, value)
        return self.forms[value]

    def _nearest(self, reader: str, value: str, goal: Lies) -> Use:
        forms = self._forms(reader, value)
        return min(forms, key=lambda use: sum(self._move_cost(use, axis, goal[axis]) for axis in self.axes))

    def _bytes(self, use: Use, axis: str, kind: str) -> int:
        """Bytes each rank sends for one row of the whole value (ring algorithms; a slice sends nothing)."""
        ranks = self.mesh.size(axis)
        share = {
            "all_reduce": 2 * (ranks - 1) / ranks,
            "reduce_scatter": (ranks - 1) / ranks,
            "all_gather": (ranks - 1) / ranks,
            "all_to_all": (ranks - 1) / ranks**2,
            "slice": 0.0,
        }[kind]
        for other, lie in use.lies.items():
            if other != axis and lie in ("S0", "S1"):
                share /= self.mesh.size(other)
        return math.ceil(use.columns * use.item_bytes * share)

    def _refusal(self, call: Call, axis: str, weights: tuple[Lie, ...]) -> str:
        edges = [
            f"{word} {edge.value!r} {' '.join(str(p) for p in edge.layout) or 'as it comes'}{at}"
            for word, edges, lies in (("reads", call.reads, True), ("writes", call.writes, False))
            for edge in edges
            for at in ([f" (is {self.source(call.name, edge.value).lies[axis]})"] if lies else [""])
        ]
        held = f"; its weights lie {' '.join(weights)}" if weights else ""
        return (
            f"{call.name}: no legal {call.op} along {axis}: it {', '.join(edges)}{held}; "
            f"legal: {', '.join(str(rule) for rule in RULES[call.op])}"
        )


def _agrees(lies: Sequence[Lie], declared: Sequence[Lie | None]) -> bool:
    return len(lies) == len(declared) and all(
        want is None or lie == want for lie, want in zip(lies, declared, strict=True)
    )


def _moved_dim(was: Lie, now: Lie) -> int:
    return int((now if now.startswith("S") else was)[1:]) if "S" in was + now else 0


def _never(*_: Any) -> Any:
    raise AssertionError("a collective runs through Collectives.move")


def shard(weight: Weight, mesh: Mesh) -> Parameter:
    """Derive what this rank holds of `weight`: its local shape, and which region of which tensor goes where.

    Raises SetupError where a dimension cannot be cut evenly, naming the tensor and the axis.
    """
    spread = [(placement, axis) for placement in weight.layout for axis in mesh.base(placement.axis)]
    cuts: dict[int, list[str]] = {}
    absent = False
    for placement, axis in spread:
        if placement.lie == "P":
            absent = absent or mesh.index(axis) != 0
        elif placement.lie != "R":
            cuts.setdefault(int(placement.lie[1:]), []).append(axis)
    cuts = {
        dim: sorted(axes, key=BASE_AXES.index) for dim, axes in cuts.items()
    }  # outermost first, as values
    rows = _cut(weight.name, cuts.pop(0, []), mesh, len(weight.parts)) if weight.stacked else range(1)
    offset = 1 if weight.stacked else 0
    fills: list[Fill] = []
    height = 0
    widths: tuple[int, ...] = ()
    for index in rows:
        height = 0
        for part in weight.parts[index]:
            take = tuple(
                _cut_range(part, dim, cuts.get(dim + offset, []), mesh) for dim in range(len(part.shape))
            )
            size = take[0].stop - take[0].start
            widths = tuple(s.stop - s.start for s in take[1:])
            into = (slice(height, height + size), *(slice(0, width) for width in widths))
            if weight.stacked:
                into = (slice(index - rows.start, index - rows.start + 1), *into)
            if not absent:
                fills.append(Fill(part.source, part.shape, take, into))
            height += size
    shape = (height, *widths)
    return Parameter(
        name=weight.name,
        shape=(len(rows), *shape) if weight.stacked else shape,
        dtype=weight.dtype,
        fill="zeros" if absent else weight.fill,
        fills=tuple(fills),
        sources=tuple(part.source for row in weight.parts for part in row),
    )


def local_units(mesh: Mesh, axis: str, units: int, what: str, *, repeats: bool = False) -> range:
    """Which of `units` indivisible things (heads, experts, rows) this rank holds along `axis`.

    With `repeats`, fewer units than ranks are held by ranks / units neighbours each. Raises SetupError when
    the units do not spread evenly.
    """
    ranks, index = mesh.size(axis), mesh.index(axis)
    if units % ranks == 0:
        size = units // ranks
        return range(index * size, (index + 1) * size)
    if repeats and ranks % units == 0:
        unit = index * units // ranks
        return range(unit, unit + 1)
    raise SetupError(f"{what}: {units} do not spread over {axis}={ranks}; sizes that divide {units} work")


def _cut(what: str, axes: list[str], mesh: Mesh, units: int, *, repeats: bool = False) -> range:
    """The units this rank holds, cut along `axes` outermost first."""
    held = range(units)
    for axis in axes:
        inner = local_units(mesh, axis, len(held), what, repeats=repeats)
        held = range(held.start + inner.start, held.start + inner.stop)
    return held


def _cut_range(part: Part, dim: int, axes: list[str], mesh: Mesh) -> slice:
    size = part.shape[dim]
    units = part.units if dim == 0 and part.units else size
    held = _cut(f"{part.source} dim {dim}", axes, mesh, units, repeats=part.repeats)
    step = size // units
    return slice(held.start * step, held.stop * step)


__all__ = ["compile_program", "local_units", "shard"]
