# SPDX-License-Identifier: MIT
"""Does a stamp find every fault of KV memory, and none that is not there? What does looking cost?

In: how many faults and how many checks of sound blocks, and a device. Out: a table, and with `--out` JSON. Faults, in
turn: a bit flipped anywhere in a block, two blocks swapped, a stamp of a stale epoch, a block found by another
tenant's name. Every fault is planted in memory that is otherwise sound, looked for in all blocks, and taken back;
found means that exactly the planted blocks do not bear their stamps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import torch

from tokenspeed.bench.provenance import commit, machine
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.stamps import Checksums, Stamps
from tokenspeed.layers.kv import MLA

KINDS = ("bit flip", "swapped blocks", "stale epoch", "wrong tenant")


class Bench:
    """Stamped KV of an MLA model's shape, `layers` deep."""

    def __init__(self, device: torch.device, *, blocks: int, layers: int) -> None:
        self.blocks = blocks
        self.arena = Arena(
            [MLA(512, 64)] * layers, blocks=blocks, block_tokens=64, dtype=torch.bfloat16, device=device
        )
        for tensor in self.arena.tensors():
            tensor.normal_()
        self.checksums = Checksums(self.arena)
        self.stamps = Stamps(self.checksums, blocks, sampled=False, epoch=1)
        self.stale = Stamps(self.checksums, blocks, sampled=False, epoch=2)
        self.all = np.arange(blocks, dtype=np.int32)
        self.random = np.random.default_rng(0)
        self.names = self.random.integers(0, 1 << 63, blocks).astype(np.uint64)
        self.stamps.freeze(self.all, self.names)
        self.stale.freeze(self.all, self.names)

    def found(self, names: np.ndarray) -> list[int]:
        """Blocks that do not bear their stamps."""
        return self.stamps.unlike(self.all, names).nonzero().flatten().tolist()

    def plant(self, kind: str) -> bool:
        """Plant one fault, look, take it back; whether it was found, and nothing else."""
        tensors, random = self.arena.tensors(), self.random
        one, two = sorted(random.choice(self.blocks, 2, replace=False).tolist())
        names = self.names
        if kind == "bit flip":
            memory = tensors[random.integers(len(tensors))][one].view(torch.uint8).flatten()
            at, bit = int(random.integers(len(memory))), 1 << int(random.integers(8))
            memory[at] ^= bit
            right = self.found(names) == [one]
            memory[at] ^= bit
            return right
        if kind == "swapped blocks":
            self._swap(one, two)
            right = self.found(names) == [one, two]
            self._swap(one, two)
            return right
        if kind == "stale epoch":
            kept = self.stamps._stamps[one].clone()
            self.stamps._stamps[one] = self.stale._stamps[one]
            right = self.found(names) == [one]
            self.stamps._stamps[one] = kept
            return right
        other = names.copy()
        other[one] ^= np.uint64(1) << np.uint64(random.integers(64))
        return self.found(other) == [one]

    def _swap(self, one: int, two: int) -> None:
        for tensor in self.arena.tensors():
            tensor[[one, two]] = tensor[[two, one]].clone()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--checks", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bench = Bench(torch.device(options.device), blocks=options.blocks, layers=options.layers)
    planted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for number in range(options.faults):
        kind = KINDS[number % len(KINDS)]
        planted[kind] += 1
        found[kind] += bench.plant(kind)
    false = checks = 0
    begun_s = time.perf_counter()
    while checks < options.checks:
        false += len(bench.found(bench.names))
        checks += options.blocks
    seconds = time.perf_counter() - begun_s
    for kind in KINDS:
        print(f"{kind:<16} {found[kind]:>6} of {planted[kind]} found")
    rate = checks * bench.checksums.block_bytes / seconds / 1e9
    print(
        f"{checks} checks of sound blocks: {false} false; {seconds / checks * 1e6:.1f} us a block, {rate:.2f} GB/s"
    )
    if options.out is not None:
        result = {
            "question": (__doc__ or "").splitlines()[0],
            "commit": commit(),
            "machine": machine(),
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv[1:],
            "planted": planted,
            "found": found,
            "checks": checks,
            "false": false,
            "block_bytes": bench.checksums.block_bytes,
            "seconds": seconds,
        }
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return 0 if found == planted and not false else 1


if __name__ == "__main__":
    sys.exit(main())
