# SPDX-License-Identifier: MIT
"""Agents on this engine and on llama.cpp's server: the same client, the same checkpoint, one report.

    python benchmarks/peers/llama_cpp_agentic.py --llama-server BIN --checkpoint DIR --gguf FILE --out DIR [-- OPTIONS]

In: a checkpoint (make_checkpoint.py) and its GGUF twin (llama_cpp_convert.py); OPTIONS go to `bench agentic` as they
are. Out: a JSON a side and `report.html` in `--out`. Rounds alternate between the servers, each alone with the threads
it is given, so that a slow minute of a shared machine hurts all; a round is a repeat, with its own conversations. Seeds
and checks are the same. llama.cpp runs with flash attention and without: one prefills faster here, the other decodes
faster. It judges nothing: `bench report` does.
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
from dataclasses import replace
from pathlib import Path

from tokenspeed.bench import record
from tokenspeed.bench.record import Result

READY_S = 120.0
PORT = 8231


def llama_cpp_command(
    binary: Path, gguf: Path, *, port: int, users: int, context_tokens: int, threads: int, flash: bool = True
) -> list[str]:
    """llama.cpp's server as it serves agents best.

    A slot with a whole context for each user, so that no session's prefix is given up for another's. Host copies of
    idle slots are off: no conversation of a level comes back to a slot that was taken from it.
    """
    flags = {
        "--parallel": users,
        "--ctx-size": users * context_tokens,
        "--threads": threads,
        "--flash-attn": "on" if flash else "off",
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


def together(rounds: Sequence[Result]) -> Result:
    """One result of which each round is a repeat."""
    levels = [
        replace(level, repeat=repeat) for repeat, result in enumerate(rounds) for level in result.levels
    ]
    return replace(rounds[0], levels=tuple(levels), config=rounds[0].config | {"repeats": len(rounds)})


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="for bench agentic, after --")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    own = own_command(args.checkpoint, port=PORT, context_tokens=args.context, threads=args.threads)
    peer, flash = (
        llama_cpp_command(
            args.llama_server, args.gguf, port=PORT, users=args.users, context_tokens=args.context,
            threads=args.threads, flash=flash,
        )
        for flash in (False, True)
    )  # fmt: skip
    # Each is held to the grain in which it reuses prefixes.
    peer_words = ["--api", "llama.cpp", "--block-tokens", "1"]
    sides = {
        "ours": (own, ["--name", "TokenSpeed", "--block-tokens", "64"]),
        "llama-cpp": (peer, ["--name", "llama.cpp", *peer_words]),
        "llama-cpp-flash": (flash, ["--name", "llama.cpp, flash attention", *peer_words]),
    }
    common = ["--vocab", str(args.vocab), "--context", str(args.context), *args.options]
    rounds: dict[str, list[Result]] = {side: [] for side in sides}
    for seed in range(args.rounds):
        for side, (command, words) in sides.items():
            out = args.out / f"{side}.json"
            with serving(command, PORT, args.out / f"{side}.log") as url:
                _bench("agentic", "--url", url, *words, *common, "--seed", str(seed), "--out", str(out))
            rounds[side].append(record.read(out))
            record.write(together(rounds[side]), out)
    results = [str(args.out / f"{side}.json") for side in sides]
    _bench("report", *results, "--html", str(args.out / "report.html"))


if __name__ == "__main__":
    main()
