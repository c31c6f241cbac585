# SPDX-License-Identifier: MIT
"""The compiled program of every family on every mesh is the one a person has read.

To accept a change, delete the golden files it concerns under tests/golden/programs, run the tests twice, and
read the diff: a missing file is written (and that test fails once).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenspeed import models
from tokenspeed.dist import Mesh

GOLDEN = Path(__file__).parents[2] / "golden" / "programs"


def test_program_prints_as_its_golden(config: dict[str, Any], mesh: Mesh, mesh_name: str) -> None:
    program = str(models.build(config, mesh=mesh).program)
    path = GOLDEN / f"{config['name']}.{mesh_name}.txt"
    if not path.exists():
        path.write_text(program)
        raise AssertionError(f"{path.name} was missing and has been written; read it")
    assert program == path.read_text()


def test_one_rank_moves_nothing(config: dict[str, Any]) -> None:
    assert models.build(config).program.collectives == ()
