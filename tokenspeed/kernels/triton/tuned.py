# SPDX-License-Identifier: MIT
"""Tile configurations that were measured: read, looked up, written.

In: files `tuned/<op>.<device>.json` beside this module, one for each op and device, written by the tuner of the
op's benchmark. Out: for a shape and a number of tokens, the plan that was fastest, or None; then the caller
falls back to its stated heuristic. A file of another version is ignored: `VERSION` of an op's plans changes
with the kernels they speak of.

    {"version": 1, "device": "NVIDIA H200", "shapes": [
        {"shape": {...}, "plans": [{"tokens": 16, "plan": {...}, "us": 205.0}, ...]}, ...]}

An entry holds for token counts above that of the next smaller entry of its shape, up to its own; the largest
holds for all above it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TUNED = Path(__file__).parent / "tuned"

Shape = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Entry:
    """What was fastest for `shape` at `tokens`, and how long it took."""

    shape: Shape
    tokens: int
    plan: Mapping[str, Any]
    us: float


def path_of(op: str, device: str) -> Path:
    """The file of an op on a device, by the name its driver gives it."""
    return TUNED / f"{op}.{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


@functools.cache
def entries(op: str, device: str, version: int) -> tuple[Entry, ...]:
    """All entries of a device for this version of an op's plans, fewest tokens first; empty without a file."""
    path = path_of(op, device)
    if not path.exists():
        return ()
    held = json.loads(path.read_text())
    if held["version"] != version:
        return ()
    found = (
        Entry(of["shape"], one["tokens"], one["plan"], one["us"])
        for of in held["shapes"]
        for one in of["plans"]
    )
    return tuple(sorted(found, key=lambda entry: entry.tokens))


def plan_for(op: str, device: str, version: int, shape: Shape, tokens: int) -> Mapping[str, Any] | None:
    """The plan measured for the least token count that is not below `tokens`, or for the most; None without."""
    measured = [entry for entry in entries(op, device, version) if entry.shape == shape]
    fits = [entry for entry in measured if entry.tokens >= tokens] or measured[-1:]
    return fits[0].plan if fits else None


def write(op: str, device: str, version: int, found: Sequence[Entry]) -> Path:
    """Write the file of an op on a device: `found`, and what it held of other shapes in this version."""
    path = path_of(op, device)
    new = [entry.shape for entry in found]
    kept = [entry for entry in entries(op, device, version) if entry.shape not in new]
    shapes: list[str] = []
    for shape in {json.dumps(dict(entry.shape)): entry.shape for entry in (*kept, *found)}.values():
        plans = ",\n".join(
            json.dumps({"tokens": e.tokens, "plan": dict(e.plan), "us": e.us})
            for e in (*kept, *found)
            if e.shape == shape
        )
        shapes.append(f'{{"shape": {json.dumps(dict(shape))}, "plans": [\n{plans}\n]}}')
    head = f'{{"version": {version}, "device": {json.dumps(device)}, "shapes": [\n'
    path.parent.mkdir(exist_ok=True)
    path.write_text(head + ",\n".join(shapes) + "\n]}\n")
    entries.cache_clear()
    return path
