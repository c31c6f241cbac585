# SPDX-License-Identifier: MIT
"""How fast do weights come from files in the page cache to where a model computes?

    python benchmarks/load_weights.py MODEL [--device cuda] [--readers 1,2,4,8] [--out FILE.json]

In: a model directory. Out: a table and a JSON with seconds and bytes for each number of reader threads, the host's own
rate of reading the same files into memory that is there already (with as many threads, and nothing else), and on a GPU
the most memory in use beside what stays. Every file is read once before. Nothing is compared: the tests do that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tokenspeed import models, weights
from tokenspeed.bench import provenance

PIECE_BYTES = 8 << 20


def pieces(directory: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(directory.glob("*.safetensors")):
        for offset in range(0, path.stat().st_size, PIECE_BYTES):
            yield path, offset


def read_gb_per_s(directory: Path, threads: int) -> float:
    """Read all files with so many threads, each into one buffer of its own."""
    todo, lock = pieces(directory), threading.Lock()
    buffers = [memoryview(torch.zeros(PIECE_BYTES, dtype=torch.uint8).numpy()) for _ in range(threads)]

    def work(buffer: memoryview) -> int:
        files: dict[Path, int] = {}
        total = 0
        while True:
            with lock:
                piece = next(todo, None)
            if piece is None:
                break
            path, offset = piece
            if path not in files:
                files[path] = os.open(path, os.O_RDONLY)
            total += os.preadv(files[path], [buffer], offset)
        for descriptor in files.values():
            os.close(descriptor)
        return total

    with ThreadPoolExecutor(threads) as pool:
        started = time.monotonic()
        total = sum(pool.map(work, buffers))
        return total / (time.monotonic() - started) / 1e9


def load(directory: Path, device: str, readers: int) -> dict[str, Any]:
    model = models.build(models.read_config(directory), device=device)
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    loaded = weights.load(model, directory, readers=readers)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    row: dict[str, Any] = {
        "readers": readers,
        "seconds": seconds,
        "read_bytes": loaded.read_bytes,
        "gb_per_s": loaded.read_bytes / seconds / 1e9,
        "files_gb_per_s": read_gb_per_s(directory, readers),
    }
    if cuda:
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        row["held_bytes"] = torch.cuda.memory_allocated()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Weights from the page cache to the device, by reader threads."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--readers", default="1,2,4,8")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    read_gb_per_s(args.model, 4)
    rows: list[dict[str, Any]] = []
    for readers in map(int, args.readers.split(",")):
        rows.append(load(args.model, args.device, readers))
        row = rows[-1]
        beside = (
            f", {(row['peak_bytes'] - row['held_bytes']) / 2**30:.2f} GiB beside"
            if "peak_bytes" in row
            else ""
        )
        print(
            f"{readers:3} readers: {row['seconds']:6.2f} s, {row['gb_per_s']:5.1f} GB/s "
            f"(files alone {row['files_gb_per_s']:5.1f}){beside}",
            flush=True,
        )
    if args.out:
        result = {
            "benchmark": "load_weights",
            "commit": provenance.commit(),
            "machine": str(provenance.machine()),
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
            "command": sys.argv,
            "rows": rows,
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
