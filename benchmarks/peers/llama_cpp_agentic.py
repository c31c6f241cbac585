# SPDX-License-Identifier: MIT
"""Agents on this engine and on llama.cpp's server: the same client, the same checkpoint, one report.

    python benchmarks/peers/llama_cpp_agentic.py --llama-server BIN --checkpoint DIR --gguf FILE --out DIR [-- OPTIONS]

In: a checkpoint (make_checkpoint.py) and its GGUF twin (llama_cpp_convert.py); OPTIONS go to `bench agentic` as they
are. Out: `ours.json`, `llama-cpp.json` and `report.html` in `--out`. The servers run one after the other, each alone
with all cores, each at the flags that serve it best; conversations, seeds and checks are the same. It judges nothing:
`bench report` does.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

READY_S = 120.0
PORT = 8231


def llama_cpp_command(
    binary: Path, gguf: Path, *, port: int, users: int, context_tokens: int, threads: int
) -> list[str]:
    """llama.cpp's server as it serves agents best.

    A slot with a whole context for each user, so that no session's prefix is given up for another's. Flash
    attention on: shorter decode steps here, and prefills of this length lose nothing. The host copies of idle
    slots are off: no conversation of a level comes back to a slot that was taken from it.
    """
    flags = {
        "--parallel": users,
        "--ctx-size": users * context_tokens,
        "--threads": threads,
        "--flash-attn": "on",
        "--cache-ram": 0,
        "--host": "127.0.0.1",
        "--port": port,
        "--alias": gguf.stem,
    }
    return [str(binary), "--model", str(gguf), "--no-ui", *(str(x) for pair in flags.items() for x in pair)]


def own_command(checkpoint: Path, *, port: int, context_tokens: int, threads: int) -> list[str]:
    """This engine at its defaults, with room for the same contexts."""
    flags = ["--port", str(port), "--max-model-len", str(context_tokens), "--threads", str(threads)]
    return [sys.executable, "-m", "tokenspeed.cli", "serve", str(checkpoint), "--allow-forced-output", *flags]


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """A server that answers `/health`, until it is left; its URL."""
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as words, subprocess.Popen(command, stdout=words, stderr=words) as process:
        try:
            ends_s = time.monotonic() + READY_S
            while not _healthy(url):
                if process.poll() is not None or time.monotonic() > ends_s:
                    raise SystemExit(f"{command[0]} does not serve; its words are in {log}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _bench(*words: str) -> None:
    # Status 1 is an invalid level: it is in the result, and the report says so.
    status = subprocess.run([sys.executable, "-m", "tokenspeed.cli", "bench", *words], check=False).returncode
    if status not in (0, 1):
        raise SystemExit(f"bench {words[0]} ended with {status}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=4, help="the highest level of concurrency")
    parser.add_argument("--context", type=int, default=8192, help="longest prompt plus answer of a user")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("options", nargs="*", help="for bench agentic, after --")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    own = own_command(args.checkpoint, port=PORT, context_tokens=args.context, threads=args.threads)
    peer = llama_cpp_command(
        args.llama_server, args.gguf, port=PORT, users=args.users, context_tokens=args.context, threads=args.threads
    )  # fmt: skip
    # Both reuse more finely than in blocks of 64, or exactly so; each is held to its own grain.
    sides = {
        "ours": (own, "TokenSpeed", ["--api", "completions", "--block-tokens", "64"]),
        "llama-cpp": (peer, "llama.cpp", ["--api", "llama.cpp", "--block-tokens", "1"]),
    }
    results: list[str] = []
    for side, (command, name, words) in sides.items():
        with serving(command, PORT, args.out / f"{side}.log") as url:
            result = str(args.out / f"{side}.json")
            common = [
                "--url",
                url,
                "--name",
                name,
                "--vocab",
                str(args.vocab),
                "--context",
                str(args.context),
            ]
            _bench("agentic", *common, *words, "--out", result, *args.options)
            results.append(result)
    _bench("report", *results, "--html", str(args.out / "report.html"))


if __name__ == "__main__":
    main()
