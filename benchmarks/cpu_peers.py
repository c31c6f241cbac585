# SPDX-License-Identifier: MIT
"""The engine against llama.cpp on this CPU, interleaved in one run, on the same checkpoint.

    python benchmarks/cpu_peers.py --llama-bench BIN --model NAME=CHECKPOINT=GGUF [--model ...] --out FILE.json

In: checkpoints (make_checkpoint.py) and their GGUF twins (peers/llama_cpp_convert.py). Out: a JSON with every sample of
both engines and of the machine's streaming ceiling, and a table. Rounds alternate between the engines, each in a fresh
process with all cores, so that a slow minute of a shared machine hurts both; a ratio is taken from each side's best
round. llama.cpp runs with flash attention on and off, and the better counts (long prefills: off, the faster here).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def streaming_gb_per_s(mib: int = 512, rounds: int = 5) -> float:
    """Best of several sums over a buffer larger than the caches, one thread per half: bytes read per second."""
    from concurrent.futures import ThreadPoolExecutor

    halves = np.split(np.ones(mib << 17, dtype=np.int64), 2)
    best = 0.0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(np.sum, halves))
            best = max(best, (mib << 20) / (time.perf_counter() - start) / 1e9)
    return best


def run_engine(checkpoint: Path, options: list[str]) -> dict[str, float]:
    """Tokens per second by case, from `tokenspeed bench engine` in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, "-m", "tokenspeed.cli", "bench", "engine", str(checkpoint), *options]
        subprocess.run(
            [*command, "--steps", "1,33", "--repeats", "1", "--out", out.name], check=True, stdout=sys.stderr
        )
        record = json.loads(Path(out.name).read_text())
    rates = {
        f"decode b{row['batch']} {row['context_tokens']}": row["tokens_per_s"] for row in record["decode"]
    }
    return rates | {f"prefill b1 {row['context_tokens']}": row["tokens_per_s"] for row in record["prefill"]}


def run_llama(binary: Path, gguf: Path, contexts: str, prefills: str, threads: int) -> dict[str, float]:
    """Best of flash attention on and off; long prefills run without it, where it was the slower of the two."""
    decode, shortest = ["-p", "0", "-n", "32", "-d", contexts], prefills.split(",")[0]
    cases = [
        ("0", decode),
        ("1", decode),
        ("0", ["-n", "0", "-p", prefills]),
        ("1", ["-n", "0", "-p", shortest]),
    ]
    found: dict[str, float] = {}
    for flash, case in cases:
        command = [
            str(binary),
            "-m",
            str(gguf),
            "-t",
            str(threads),
            "-fa",
            flash,
            "-r",
            "1",
            "-o",
            "json",
            *case,
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for row in json.loads(done.stdout):
            kind, size = ("decode", row["n_depth"]) if row["n_gen"] else ("prefill", row["n_prompt"])
            key = f"{kind} b1 {size}"
            found[key] = max(found.get(key, 0.0), row["avg_ts"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, help="NAME=CHECKPOINT=GGUF; repeatable")
    parser.add_argument("--contexts", default="128,2048,8192")
    parser.add_argument("--prefills", default="512,4096,8192")
    parser.add_argument(
        "--batch", type=int, default=8, help="also decode this many rows at 2,048 tokens; 1 to skip"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    threads = ["--threads", str(args.threads)]
    single = ["--batch", "1", "--contexts", args.contexts, "--prefills", args.prefills, *threads]
    several = ["--batch", str(args.batch), "--contexts", "2048", "--prefills", "", *threads]
    int8 = ["--batch", "1", "--contexts", "128", "--prefills", "", "--quantization", "int8", *threads]
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "argv": sys.argv[1:],
        "models": {},
    }
    for spec in args.model:
        name, checkpoint, gguf = spec.split("=")
        samples: dict[str, list[Any]] = {
            "ours": [],
            "ours_int8": [],
            "llama_cpp": [],
            "streaming_gb_per_s": [],
        }
        for _ in range(args.rounds):
            samples["streaming_gb_per_s"].append(streaming_gb_per_s())
            ours = run_engine(Path(checkpoint), single)
            samples["ours"].append(ours | (run_engine(Path(checkpoint), several) if args.batch > 1 else {}))
            samples["llama_cpp"].append(
                run_llama(args.llama_bench, Path(gguf), args.contexts, args.prefills, args.threads)
            )
            samples["ours_int8"].append(run_engine(Path(checkpoint), int8))
        result["models"][name] = samples
        args.out.write_text(json.dumps(result, indent=1))
        print_table(name, samples)


def print_table(name: str, samples: dict[str, list[Any]]) -> None:
    ceiling = max(samples["streaming_gb_per_s"])
    print(
        f"\n{name}: streaming ceiling seen {ceiling:.1f} GB/s; best of {len(samples['ours'])} rounds, tokens per second"
    )
    print(f"{'case':<20}{'ours':>10}{'llama.cpp':>12}{'ratio':>8}")
    best = {
        side: {k: max(r[k] for r in samples[side]) for k in samples[side][0]}
        for side in ("ours", "ours_int8", "llama_cpp")
    }
    for case, ours in best["ours"].items():
        peer = best["llama_cpp"].get(case)
        print(f"{case:<20}{ours:>10.1f}" + (f"{peer:>12.1f}{ours / peer:>8.2f}" if peer else ""))
    single = best["ours"].get("decode b1 2048")
    for case, ours in best["ours"].items():
        if case.startswith("decode b") and not case.startswith("decode b1 ") and single:
            print(f"{case} against batch 1: {ours / single:.2f}x")
    for case, ours in best["ours_int8"].items():
        print(f"int8 {case}: {ours:.1f} tok/s, {ours / best['ours'][case]:.2f}x bf16")


if __name__ == "__main__":
    main()
