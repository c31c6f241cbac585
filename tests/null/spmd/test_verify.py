# SPDX-License-Identifier: MIT
"""verify catches every collective that is dropped, doubled, or changed, in every program of every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokenspeed import models
from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh
from tokenspeed.spmd.program import Program
from tokenspeed.spmd.verify import MOVES, verify


def mutants(program: Program) -> list[Program]:
    found: list[Program] = []
    for index, step in enumerate(program.steps):
        if step.collective is None:
            continue
        before, after = program.steps[:index], program.steps[index + 1 :]
        (was,), (now,) = step.reads, step.writes
        dropped = [
            replace(s, reads=tuple(replace(u, value=was.value) if u == now else u for u in s.reads))
            for s in after
        ]
        found.append(replace(program, steps=(*before, *dropped)))
        doubled = replace(step, reads=(now,), writes=(now,))
        found.append(replace(program, steps=(*before, step, doubled, *after)))
        for kind in set(MOVES.values()) - {step.collective.kind}:
            changed = replace(step, op=kind, collective=replace(step.collective, kind=kind))
            found.append(replace(program, steps=(*before, changed, *after)))
    return found


def test_programs_as_compiled_pass(config: dict[str, Any], mesh: Mesh) -> None:
    verify(models.build(config, mesh=mesh).program)


def test_every_mutant_is_caught(config: dict[str, Any], mesh: Mesh) -> None:
    program = models.build(config, mesh=mesh).program
    for mutant in mutants(program):
        with pytest.raises(SetupError):
            verify(mutant)


def test_reader_of_a_stale_form_is_caught(config: dict[str, Any]) -> None:
    """A moved value must not outlive the value it was moved from."""
    program = models.build(config, mesh=Mesh(tp=2)).program
    moved = [
        i for i, step in enumerate(program.steps) if step.collective is not None and step.op == "all_reduce"
    ]
    stale = replace(program, steps=tuple(s for i, s in enumerate(program.steps) if i != moved[1]))
    with pytest.raises(SetupError, match="which no step before it writes"):
        verify(stale)
