# SPDX-License-Identifier: MIT
"""The table of what is legal: for each op, how its operands may lie along one axis, and how its results then
lie.

In: a `Program`. Out: nothing, or a SetupError that names step, axis and edge. Run after every pass of the
compiler. It changes nothing and decides nothing: `compile` searches the same table for the rule that costs
least.

A row reads `reads | weights -> writes`, along one axis. Dimension 0 counts tokens (or experts, rows of a
weight); dimension 1 counts features. A rule is here because the algebra of the op makes it true:

    matmul   R | S0 -> S1    rows of the weight are columns of the result
    matmul   S1 | S1 -> P    each rank holds a term of the inner sum
    norm     S1 is absent    a mean over features needs them all
    add      P P -> P        a sum of sums: one reduction later instead of two now
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

from tokenspeed.base.errors import SetupError
from tokenspeed.spmd.placement import Lie, Lies, along
from tokenspeed.spmd.program import Collective, Program, Step


@dataclass(frozen=True, slots=True)
class Rule:
    """One legal way for an op to lie along one axis."""

    reads: tuple[Lie, ...]
    weights: tuple[Lie, ...]
    writes: tuple[Lie, ...]

    def __str__(self) -> str:
        left = " ".join(self.reads) + (" | " + " ".join(self.weights) if self.weights else "")
        return f"{left} -> {' '.join(self.writes)}"


def _rules(*rows: str) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for row in rows:
        left, writes = row.split("->")
        reads, _, weights = left.partition("|")
        rules.append(Rule(_lies(reads), _lies(weights), _lies(writes)))
    return tuple(rules)


def _lies(words: str) -> tuple[Lie, ...]:
    return tuple(cast(Lie, word) for word in words.split())


RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "lookup": _rules("R | R -> R", "S0 | R -> S0", "R | S0 -> P", "R | S1 -> S1"),
    "matmul": _rules("R | R -> R", "S0 | R -> S0", "P | R -> P", "R | S0 -> S1", "S1 | S1 -> P"),
    # A bias is added once: with a Partial result it is itself Partial, on the first rank and zero elsewhere.
    "matmul_bias": _rules("R | R R -> R", "S0 | R R -> S0", "R | S0 S0 -> S1", "S1 | S1 P -> P"),
    # Two weights read one value: rows of the first are spread, the second is whole.
    "matmul_pair": _rules("R | R R -> R R", "S0 | R R -> S0 S0", "R | S0 R -> S1 R"),
    "norm": _rules("R | R -> R", "S0 | R -> S0"),
    "norm_first": _rules("R | R -> R R", "S0 | R -> S0 S0"),
    "norm_add": _rules("R R | R -> R R", "S0 S0 | R -> S0 S0"),
    "gated": _rules("R -> R", "S0 -> S0", "S1 -> S1"),
    "attend": _rules("R -> R", "S0 -> S0", "S1 -> S1"),
    "attend_normed": _rules("R | R R -> R", "S0 | R R -> S0", "S1 | R R -> S1"),
    # Latent attention: queries by head, one latent for all heads, its up-projection by head.
    "attend_latent": _rules("R R | R R -> R", "S0 S0 | R R -> S0", "S1 R | R S0 -> S1"),
    "route": _rules("R | R -> R R", "S0 | R -> S0 S0"),
    "route_biased": _rules("R | R R -> R R", "S0 | R R -> S0 S0"),
    "experts": _rules("R R R | R R -> R", "S0 S0 S0 | R R -> S0", "R R R | S0 S0 -> P", "R R R | S1 S2 -> P"),
    "experts_shared": _rules("R R R | R R R R -> R", "S0 S0 S0 | R R R R -> S0", "R R R | S1 S2 S0 S1 -> P"),
    "add": _rules("R R -> R", "S0 S0 -> S0", "S1 S1 -> S1", "P P -> P"),
    # The second operand is the row index: where tokens are spread it is spread with them.
    "select": _rules("R R -> R", "S0 S0 -> S0", "S1 R -> S1", "P R -> P"),
}

MOVES: Final[dict[tuple[Lie, Lie], str]] = {
    ("P", "R"): "all_reduce",
    ("P", "S0"): "reduce_scatter",
    ("P", "S1"): "reduce_scatter",
    ("S0", "R"): "all_gather",
    ("S1", "R"): "all_gather",
    ("R", "S0"): "slice",
    ("R", "S1"): "slice",
    ("S0", "S1"): "all_to_all",
    ("S1", "S0"): "all_to_all",
}
"""(from, to) -> the collective that moves a value so. What is absent (R -> P, S -> P) no move makes."""


def verify(program: Program) -> None:
    """Check that every step of `program` follows a rule on every axis and reads values as they were written.

    Raises SetupError that names the step and the edge.
    """
    values: dict[str, Lies] = {edge.value: dict(edge.lies) for edge in program.inputs}
    for step in program.steps:
        for edge in step.reads:
            if edge.value not in values:
                raise SetupError(f"{step.name}: reads {edge.value!r}, which no step before it writes")
            for axis in program.axes:
                was, wants = along(values[edge.value], axis), along(edge.lies, axis)
                if was != wants:
                    raise SetupError(
                        f"{step.name}: edge {edge.value!r} along {axis} is read as {wants} but was written "
                        f"as {was}; missing: {MOVES.get((was, wants), 'a move that no collective makes')}"
                    )
        for axis in program.axes:
            _verify_axis(step, axis, program.axes)
        for edge in step.writes:
            # A new value makes every moved form of the old one stale.
            values = {name: lies for name, lies in values.items() if not name.startswith(edge.value + "@")}
            values[edge.value] = dict(edge.lies)
    result = program.output
    if result.value not in values or any(
        along(values[result.value], axis) != along(result.lies, axis) for axis in program.axes
    ):
        raise SetupError(f"the program does not end in {result.value!r} as declared")


def _verify_axis(step: Step, axis: str, axes: tuple[str, ...]) -> None:
    reads: tuple[Lie, ...] = tuple(along(edge.lies, axis) for edge in step.reads)
    writes: tuple[Lie, ...] = tuple(along(edge.lies, axis) for edge in step.writes)
    if step.collective is not None:
        _verify_collective(step, step.collective, axis, reads[0], writes[0])
        _verify_nesting(step, step.collective, axes)
        return
    weights: tuple[Lie, ...] = tuple(along(lies, axis) for lies in step.weights)
    if Rule(reads, weights, writes) not in RULES[step.op]:
        raise SetupError(
            f"{step.name}: {step.op} along {axis} does {Rule(reads, weights, writes)}; "
            f"legal: {', '.join(str(rule) for rule in RULES[step.op])}"
        )


def _verify_collective(step: Step, collective: Collective, axis: str, was: Lie, now: Lie) -> None:
    if axis != collective.axis:
        if was != now:
            raise SetupError(
                f"{step.name}: a collective over {collective.axis} changes {axis}: {was} -> {now}"
            )
    elif MOVES.get((was, now)) != collective.kind:
        raise SetupError(f"{step.name}: {collective.kind} over {axis} cannot do {was} -> {now}")


def _verify_nesting(step: Step, collective: Collective, axes: tuple[str, ...]) -> None:
    """A cut of a dimension changes only while no inner axis cuts the same dimension."""
    touched = {along(edge.lies, collective.axis) for edge in (*step.reads, *step.writes)} - {"R", "P"}
    for inner in axes[axes.index(collective.axis) + 1 :]:
        if along(step.reads[0].lies, inner) in touched:
            raise SetupError(
                f"{step.name}: {collective.kind} over {collective.axis} of {step.reads[0].value!r} changes "
                f"a cut that {inner} cuts further; open {inner} first"
            )
