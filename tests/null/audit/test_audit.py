# SPDX-License-Identifier: MIT
"""The auditor finds every planted violation and its cause, and nothing where nothing was planted.

The journals here are written by this file, from docs/reference/event-log.md: neither the scheduler nor its reader
has a part in them.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenspeed.audit
from tokenspeed.audit.floors import CAUSES, audit, windows_of
from tokenspeed.audit.journal import read
from tokenspeed.audit.main import main

FLOOR = 40
OTHERS = range(1_000, 1_007)  # requests without a floor, beside the judged one


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


class World:
    """A made-up engine that writes what it does: one judged request at a time, in steps of honest prices."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.log = b"TSL2" + bytes(16)
        self.now_us = 1_000_000
        self.step_number = 0
        self.record(64, text="blocks_total=9\nfloor_mtps=0\n")
        self.rows_before: list[int] = []
        self.floor = FLOOR
        for other in OTHERS:
            self.begin(other, floor=0)

    def record(self, kind: int, *numbers: int, text: str = "") -> None:
        payload = text.encode() or b"".join(map(varint, numbers))
        self.log += bytes([kind]) + varint(len(payload)) + payload

    def begin(self, request_id: int, floor: float) -> None:
        self.record(10, request_id, 5, 5, 0, int(floor * 1000), 0, 0, 0)
        self.record(1, request_id, 100, 500, 0, 77, self.now_us, 0, 0, 1)
        self.record(4, request_id, 3, 0)

    def step(
        self,
        request_id: int,
        *,
        with_it: bool = True,
        prefill: int = 0,
        wide: int = 0,
        late_us: int = 0,
        idle_us: int = 0,
    ) -> None:
        """One step of the others and, `with_it`, of the judged request."""
        ids = [*OTHERS, *range(2_000, 2_000 + wide), *([request_id] if with_it else [])]
        context = 20_000 * len(ids) + self.random.randrange(1_000)
        pairs = prefill * 10_000
        took_us = round(4_000 + 500 * len(ids) + 0.01 * context + 10 * prefill + 0.0005 * pairs)
        took_us = round(took_us * self.random.uniform(0.95, 1.05)) + late_us
        self.now_us += idle_us
        self.step_number += 1
        rows = [number for each in ids for number in (each, 3)]
        if rows != self.rows_before:
            self.record(66, self.step_number, *rows)
            self.rows_before = rows
        self.record(
            3, self.step_number, self.now_us, len(ids), len(ids), len(ids) + prefill, 9, context, pairs
        )
        self.now_us += took_us
        self.record(7, self.step_number, len(ids), 9, self.now_us, took_us)

    def answer(self, request_id: int, plant: str | None) -> None:
        """An answer of 300 tokens, with one misfortune somewhere in the middle."""
        self.begin(request_id, self.floor)
        at = self.random.randrange(20, 200)
        for token in range(300):
            if token == at and plant is not None:
                PLANTS[plant](self, request_id)
            else:
                self.step(request_id, prefill=self.random.choice((0, 0, 0, 50, 200)))
        self.record(6, request_id, 1)


def retract(world: World, request_id: int) -> None:
    world.record(5, request_id)
    for _ in range(150):
        world.step(request_id, with_it=False)
    world.record(4, request_id, 4, 0)
    world.step(request_id)


def repeat(count: int, **misfortune: int | bool) -> Callable[[World, int], None]:
    def plant(world: World, request_id: int) -> None:
        for _ in range(count):
            world.step(request_id, **misfortune)  # pyright: ignore[reportArgumentType]

    return plant


PLANTS: dict[str, Callable[[World, int], None]] = {
    "retracted": retract,
    "left out": repeat(150, with_it=False),
    "no plan": repeat(1, idle_us=1_500_000),
    "late step": repeat(1, late_us=1_500_000),
    "prefill": repeat(24, prefill=8_000),
    "too wide": repeat(128, wide=60),
}


def test_200_of_200_planted_violations_are_found_and_nothing_else() -> None:
    world = World(seed=0)
    planted: dict[int, str] = {}
    for index in range(300):
        plant = CAUSES[index % 3 + 3 * (index // 3 % 2)] if index < 204 else None
        if plant is not None:
            planted[index + 1] = plant
        world.answer(index + 1, plant)
    assert len(planted) >= 200
    assert set(planted.values()) == set(CAUSES) == set(PLANTS)
    verdict = audit(read(world.log))
    found: dict[int, set[str]] = {}
    for violation in verdict.violations:
        found.setdefault(violation.request_id, set()).add(violation.cause)
    assert found == {request_id: {plant} for request_id, plant in planted.items()}
    assert verdict.requests == 300


def test_a_window_closes_with_64_tokens_or_after_2_seconds() -> None:
    fast = [i * 10_000 for i in range(200)]
    assert [(w.tokens, w.close_us - w.open_us, w.whole) for w in windows_of(fast)] == [
        (64, 640_000, True),
        (64, 640_000, True),
        (64, 640_000, True),
        (7, 70_000, False),
    ]
    stalled = [0, 5_000_000]
    assert [(w.tokens, w.whole) for w in windows_of(stalled)] == [(0, True), (0, True), (1, False)]
    assert list(windows_of([7])) == []


def test_a_floor_is_kept_at_exactly_its_pace() -> None:
    (window, *_) = windows_of([i * 25_000 for i in range(100)])
    assert not window.violates(40_000)
    assert window.violates(40_001)


def test_the_auditor_shares_no_code_with_the_engine() -> None:
    folder = Path(tokenspeed.audit.__file__).parent
    for source in folder.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenspeed"):
                assert (node.module or "").startswith("tokenspeed.audit"), source
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("tokenspeed") for name in node.names), source


def test_the_command_prints_causes_and_its_exit_code_says_whether_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(seed=1)
    world.answer(1, None)
    path = tmp_path / "events"
    path.write_bytes(world.log)
    assert main([str(path)]) == 0
    assert "5 windows of 1 requests with a floor, 0 below it" in capsys.readouterr().out
    world.answer(2, "late step")
    path.write_bytes(world.log + b"\x03\x20")  # a record that was cut off
    out = tmp_path / "verdict.json"
    assert main([str(path), "--json", str(out)]) == 1
    assert "request 2 at" in capsys.readouterr().out
    assert {each["cause"] for each in json.loads(out.read_text())["violations"]} == {"late step"}
    path.write_bytes(b"TSL9" + bytes(16))
    assert main([str(path)]) == 2
    assert "it does not begin with TSL2" in capsys.readouterr().err
