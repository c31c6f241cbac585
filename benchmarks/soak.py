# SPDX-License-Identifier: MIT
"""Does the server survive its clients? Many streams, random disconnects, for minutes; then every block must be back.

    python benchmarks/soak.py [--streams 64] [--disconnect 0.3] [--seconds 300] [--out FILE.json] [-- SERVE OPTIONS]

Starts `tokenspeed serve` on a free port, drives it over HTTP as a stranger would (chat streams; a share of them hang up
at a random moment, some before the first token), and samples the resident memory of both processes. Fails (exit 1)
unless, after the last client, no request is open, every block is free or cached, the log holds no error, every stream
that was not cut ended with its terminal event, and memory in the last third of the run is within 5% of the second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

SAMPLE_EVERY_S = 2.0
TOPICS = ("sorts a list", "parses a date", "reads a file", "merges two dicts", "counts words", "walks a tree")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tree_rss(pid: int) -> dict[int, float]:
    """Resident MiB of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found: dict[int, float] = {}
    for each in [pid, *map(int, children)]:
        status = Path(f"/proc/{each}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        found[each] = int(match[1]) / 1024 if match else 0.0
    return found


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def one_stream(
    client: httpx.AsyncClient, dice: random.Random, disconnect: float, counts: dict[str, int]
) -> None:
    """One chat stream; cut at a random event with probability `disconnect`."""
    body = {
        "messages": [
            {"role": "system", "content": "You are a coding assistant. " * dice.choice((1, 20, 60))},
            {
                "role": "user",
                "content": f"Write a function that {dice.choice(TOPICS)} number {dice.randrange(50)}.",
            },
        ],
        "stream": True,
        "max_tokens": dice.randrange(8, 96),
        "temperature": dice.choice((0.0, 1.0)),
    }
    cut_after = dice.randrange(0, 24) if dice.random() < disconnect else None
    events, last = 0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            counts[f"status {response.status_code}"] = counts.get(f"status {response.status_code}", 0) + 1
            return
        if cut_after == 0:
            counts["cut"] += 1
            return
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                events, last = events + 1, line
                if cut_after is not None and events >= cut_after:
                    counts["cut"] += 1
                    return
    counts["whole" if last == "data: [DONE]" else "unterminated"] += 1


async def drive(
    url: str, pid: int, args: argparse.Namespace
) -> tuple[dict[str, int], list[dict[str, Any]], dict[str, float]]:
    counts = {"whole": 0, "cut": 0, "unterminated": 0}
    samples: list[dict[str, Any]] = []
    limits = httpx.Limits(max_connections=args.streams + 4, max_keepalive_connections=args.streams)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:
        for _ in range(600):
            try:
                if (await client.get("/ready")).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
        stop_at = time.monotonic() + args.seconds

        async def worker(seed: int) -> None:
            dice = random.Random(seed)
            while time.monotonic() < stop_at:
                await one_stream(client, dice, args.disconnect, counts)

        async def watch() -> None:
            while time.monotonic() < stop_at:
                rss = tree_rss(pid)
                samples.append(
                    {"at_s": args.seconds - (stop_at - time.monotonic()), "rss_mib": list(rss.values())}
                )
                await asyncio.sleep(SAMPLE_EVERY_S)

        await asyncio.gather(watch(), *(worker(args.seed * 10_000 + index) for index in range(args.streams)))
        for _ in range(100):
            last = await metrics(client)
            if last["tokenspeed_requests_open"] == 0 and last["tokenspeed_running"] == 0:
                break
            await asyncio.sleep(0.1)
    return counts, samples, last


def judge(
    counts: dict[str, int], samples: list[dict[str, Any]], last: dict[str, float], log: str
) -> list[str]:
    """What is wrong; empty when nothing is."""
    wrong: list[str] = []
    blocks = {k: last[f"tokenspeed_blocks_{k}"] for k in ("free", "cached", "total")}
    if blocks["free"] + blocks["cached"] != blocks["total"]:
        wrong.append(f"blocks are missing: {blocks}")
    if last["tokenspeed_requests_open"] or last["tokenspeed_running"] or last["tokenspeed_waiting"]:
        wrong.append("requests are open after the last client left")
    if counts["unterminated"] or any(key.startswith("status 5") for key in counts):
        wrong.append(f"streams went wrong: {counts}")
    if errors := [line for line in log.splitlines() if re.search(r" [EC] tokenspeed|Traceback", line)]:
        wrong.append(f"the log holds {len(errors)} errors, first: {errors[0]}")
    third = len(samples) // 3
    second, final = (
        max(sum(s["rss_mib"]) for s in part) for part in (samples[third : 2 * third], samples[2 * third :])
    )
    if final > 1.05 * second:
        wrong.append(f"resident memory grew from {second:.0f} to {final:.0f} MiB")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--disconnect", type=float, default=0.3)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "serve", nargs="*", default=["--kv-cache-bytes", str(64 << 20), "--max-model-len", "4096"]
    )
    args = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "tokenspeed.cli", "serve", "--port", str(port), *args.serve]
    with Path(f"/tmp/tokenspeed-soak-{port}.log").open("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            counts, samples, last = asyncio.run(drive(f"http://127.0.0.1:{port}", server.pid, args))
        finally:
            server.terminate()
            server.wait(30)
        log.seek(0)
        wrong = judge(counts, samples, last, log.read())
    first, final = samples[len(samples) // 3]["rss_mib"], samples[-1]["rss_mib"]
    print(f"{args.streams} streams, {args.seconds:.0f} s: {counts}; resident MiB {first} -> {final}")
    print("\n".join(wrong) or "every block is back, no error in the log, memory flat")
    if args.out:
        shown = {"argv": sys.argv[1:], "counts": counts, "metrics": last, "samples": samples, "wrong": wrong}
        args.out.write_text(json.dumps(shown, indent=1))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
