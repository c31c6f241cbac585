# SPDX-License-Identifier: MIT
"""How long does the KV of a long context take from the host to the device, alone and beside steps that compute?

In: a device and the KV shape of a model (27 layers of 512 + 64, as Moonlight's). Out: a table, and with `--out` JSON.
Bound: bytes over the bus; 100,000 tokens are 3.1 GB, 62 ms at 50 GB/s. Copies go through `exec.tiers.Mover` as in the
engine, each block's content is compared afterwards, bit for bit. The steps beside them are products of matrices that
keep the device busy; their slowdown is what the copies cost everybody else. On a CPU it shows that the path works.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import msgspec
import numpy as np
import torch

from tokenspeed.bench.provenance import commit, machine
from tokenspeed.control import CopyResult, Tier
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.stamps import Checksums, Stamps
from tokenspeed.exec.tiers import HostRows, Mover
from tokenspeed.layers.kv import MLA

BLOCK_TOKENS = 64


class Bench:
    """An arena with room for one context, its host tier and a mover."""

    def __init__(self, device: torch.device, *, tokens: int, layers: int, stamps: bool) -> None:
        self.device, self.count = device, -(-tokens // BLOCK_TOKENS)
        self.arena = Arena(
            [MLA(512, 64)] * layers,
            blocks=self.count,
            block_tokens=BLOCK_TOKENS,
            dtype=torch.bfloat16,
            device=device,
        )
        for tensor in self.arena.tensors():
            tensor.normal_()
        self.sums = Checksums(self.arena)
        self.names = np.arange(1, self.count + 1, dtype=np.uint64)
        kept = Stamps(self.sums, self.count, sampled=False, epoch=1) if stamps else None
        if kept is not None:
            kept.freeze(np.arange(self.count, dtype=np.int32), self.names)
        host = HostRows(self.count, self.sums.block_bytes, pinned=device.type == "cuda")
        self.mover = Mover(self.sums, {Tier.HOST: host}, kept)

    def move(self, source: Tier, target: Tier) -> float:
        """Copy every block; seconds from asking to the last report."""
        blocks = np.arange(self.count, dtype=np.int32)
        hashes = np.stack([self.names, self.names, self.names - 1, self.names - 1], axis=1)
        self._wait()
        begun_s = time.perf_counter()
        self.mover.start(
            SimpleNamespace(
                copy_ids=blocks.astype(np.uint64),
                copy_from_tiers=np.full(self.count, source, np.uint8),
                copy_to_tiers=np.full(self.count, target, np.uint8),
                copy_from=blocks,
                copy_to=blocks,
                copy_hashes=hashes.reshape(-1),
            )
        )
        done = 0
        while done < self.count:
            reports = self.mover.reports(wait=True)
            if reports is not None:
                done += len(reports.copy_ids)
                assert (reports.results == CopyResult.DONE).all(), "a copy failed"
        return time.perf_counter() - begun_s

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def steps(device: torch.device, seconds: float) -> list[float]:
    """Work like a step's until the time is over; seconds of each."""
    size = 4096 if device.type == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    took: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        begun_s = time.perf_counter()
        for _ in range(40):
            a = (a @ a).clamp_(-1, 1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begun_s)
    return took


def measure(bench: Bench, rounds: int) -> dict[str, float]:
    """Medians, in milliseconds."""
    sent = [tensor.clone() for tensor in bench.arena.tensors()]
    down = [bench.move(Tier.DEVICE, Tier.HOST) for _ in range(rounds)]
    for tensor in bench.arena.tensors():
        tensor.zero_()
    up = [bench.move(Tier.HOST, Tier.DEVICE) for _ in range(rounds)]
    for got, was in zip(bench.arena.tensors(), sent, strict=True):
        assert torch.equal(got, was), "what came back is not what went"
    quiet = statistics.median(steps(bench.device, 1.0))
    beside: list[float] = []
    worker = Thread(target=lambda: beside.extend(steps(bench.device, 2.0)))
    worker.start()
    overlapped = [bench.move(Tier.HOST, Tier.DEVICE) for _ in range(rounds)]
    worker.join()
    ms = {
        "to host alone": statistics.median(down),
        "to device alone": statistics.median(up),
        "to device beside steps": statistics.median(overlapped),
        "a step alone": quiet,
        "a step beside copies": statistics.median(beside[: max(1, int(sum(overlapped) / quiet))]),
    }
    return {name: 1e3 * value for name, value in ms.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {}
    for stamps in (False, True):
        bench = Bench(
            torch.device(options.device), tokens=options.tokens, layers=options.layers, stamps=stamps
        )
        size = bench.count * bench.sums.block_bytes
        measured = measure(bench, options.rounds)
        bench.mover.close()
        print(f"{options.tokens} tokens, {size / 1e9:.2f} GB, stamps {'full' if stamps else 'off'}")
        for name, ms in measured.items():
            rate = f"{size / ms / 1e6:8.1f} GB/s" if name.startswith("to ") else ""
            print(f"  {name:<24}{ms:10.2f} ms {rate}")
        result["full" if stamps else "off"] = {"bytes": size, "ms": measured}
    if options.out is not None:
        about = {"question": (__doc__ or "").splitlines()[0], "commit": commit(), "machine": machine()}
        taken = {"taken": datetime.now(UTC).isoformat(timespec="seconds"), "command": sys.argv[1:]}
        options.out.write_bytes(
            msgspec.json.format(msgspec.json.encode({**about, **taken, "stamps": result})) + b"\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
