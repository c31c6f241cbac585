# SPDX-License-Identifier: MIT
"""How long from the start of the process to the first token of an answer over HTTP?

    python benchmarks/start.py MODEL [--repeats 3] [--cold] [--out FILE.json] [-- SERVE OPTIONS]

Starts `tokenspeed serve MODEL` on a free port as an operator would, waits for the line that says it listens, asks for
one token of a prompt of token ids, and stops it; each repeat is a process of its own. The model's files are read once
before, so that they come from the page cache as far as it holds them. Out: what the server says as it says it, and a
JSON with the raw times of every repeat, these lines and when they came. With
`--cold` every start compiles its kernels, as the first one on a machine does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tokenspeed.bench import provenance

ADDRESS = re.compile(r" at (http://\S+) \(ready after")
STARTED_WITHIN_S = 600.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start, in seconds since the process was made."""

    listening_s: float
    first_token_s: float
    second_answer_s: float
    """How long the same request takes once more: what of the first was not the start."""
    said: list[tuple[float, str]]


def warm(directory: Path) -> float:
    """Read all files once, one after another; how many seconds that takes."""
    started = time.monotonic()
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.read(64 << 20):
                pass
    return time.monotonic() - started


def accelerators() -> list[str]:
    """Names of the GPUs, as the driver says them; none where there is no driver."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return []


def first_token_s(url: str, prompt: list[int]) -> float:
    """Ask for one token and wait for its event."""
    started = time.monotonic()
    where = urlsplit(url)
    connection = http.client.HTTPConnection(
        where.hostname or "127.0.0.1", where.port, timeout=STARTED_WITHIN_S
    )
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": True, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"the server answered {response.status}: {response.read().decode()[:400]}")
    for line in response:
        if line.startswith(b"data: "):
            break
    else:
        raise SystemExit("the answer ended without a token")
    seconds = time.monotonic() - started
    response.read()
    connection.close()
    return seconds


def start(model: Path, options: list[str], prompt: list[int], kernels: str | None) -> Start:
    """Start a server and ask it twice; `kernels` is where it finds and leaves compiled kernels, None as it likes."""
    command = [sys.executable, "-m", "tokenspeed.cli", "serve", "--port", "0", *options, str(model)]
    began = time.monotonic()
    environment = {**os.environ, **({"TRITON_CACHE_DIR": kernels} if kernels else {})}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said: list[tuple[float, str]] = []
    address: list[str] = []
    there = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append((round(time.monotonic() - began, 3), line.rstrip()))
            print(f"    {said[-1][0]:7.2f}  {line.rstrip()}", flush=True)
            if found := ADDRESS.search(line):
                address.append(found[1])
                there.set()
        there.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        there.wait(STARTED_WITHIN_S)
        if not address:
            raise SystemExit("the server did not start:\n" + "\n".join(line for _, line in said[-20:]))
        listening = time.monotonic() - began
        first_token_s(address[0], prompt)
        first = time.monotonic() - began
        again = first_token_s(address[0], prompt[::-1])
    finally:
        process.terminate()
        process.wait(60)
    return Start(listening, first, again, said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="From the start of the process to the first token over HTTP."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument(
        "--cold", action="store_true", help="compile kernels anew: an empty Triton cache each time"
    )
    parser.add_argument(
        "--cached", action="store_true", help="the files are in the page cache: do not read them"
    )
    parser.add_argument("--out", type=Path)
    words, options = sys.argv[1:], list[str]()
    if "--" in words:  # what follows is the server's
        words, options = words[: words.index("--")], words[words.index("--") + 1 :]
    args = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no server outlives this
    vocabulary = json.loads((args.model / "config.json").read_text())["vocab_size"]
    prompt = [(7919 * index + 13) % (vocabulary - 2) for index in range(args.prompt_tokens)]
    files: dict[str, Any] = {"bytes": sum(path.stat().st_size for path in args.model.glob("*.safetensors"))}
    if not args.cached:
        files.update(read_s=warm(args.model))
    print(f"{files['bytes'] / 1e9:.2f} GB of weights", flush=True)
    result: dict[str, Any] = {
        "benchmark": "start",
        "commit": provenance.commit(),
        "machine": str(provenance.machine()),
        "gpus": accelerators(),
        "command": sys.argv,
        "files": files,
        "starts": [],
    }
    for repeat in range(args.repeats):
        with tempfile.TemporaryDirectory() if args.cold else nullcontext() as kernels:
            row = start(args.model, options, prompt, kernels)
        result["starts"].append(asdict(row))
        if args.out:  # after each, so that what was measured is kept
            args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(
            f"start {repeat + 1}: listening after {row.listening_s:.2f} s, first token after {row.first_token_s:.2f} s"
            f" (the next one took {row.second_answer_s * 1e3:.0f} ms)"
        )
    median = statistics.median(row["first_token_s"] for row in result["starts"])
    print(f"median: first token after {median:.2f} s")


if __name__ == "__main__":
    main()
