# SPDX-License-Identifier: MIT
"""How fast is the engine without HTTP? Decode steps by batch and context, prefill by length, in this process.

In: a model and the engine's own options. Out: a table, and with `--out` the raw rows as JSON. The loop, the
control plane, the executor and the kernels are those that serve; there is no text, no second process and no
HTTP. Prompts are random ids of the seed, greedy, no stop ids.

- Decode: the prompts of a cell are computed first (their rate is the cell's `fill`), then sent again and found
  in the cache. T(n) is when the slowest request has n tokens; a step takes (T(n2) - T(n1)) / (n2 - n1). It
  covers contexts from `context + n1` to `context + n2`.
- Prefill: one prompt of a length that nothing of is cached, until its first token; the first of each length
  warms up and is not counted.
- With `--shared-prefix N` all prompts begin with the same N ids, which are computed once; rates count what was
  computed. Decode then reads those blocks once per request that holds them, or less where a kernel can.

A cell that the KV cache or the context cannot hold is left out by name.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed.base.clock import Clock, MonotonicClock
from tokenspeed.base.errors import SetupError
from tokenspeed.base.flags import Parser, add_options, config_of
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.engine import wire
from tokenspeed.engine.boot import Core, boot
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import Loop

BATCHES: Final = [1, 4, 8]
CONTEXTS: Final = [512, 2048]
PREFILLS: Final = [512, 2048, 8192]
STEPS: Final = [33, 161]
LOW_ID: Final = 16
"""The ids below are special in most vocabularies."""
WARM_UP_TOKENS: Final = 64
SHARED: Final = 1 << 31
"""Part of the key of the shared prefix."""


@dataclass(frozen=True, slots=True)
class Decode:
    """One cell of the decode grid."""

    batch: int
    context_tokens: int
    fill_tokens: int
    """Prompt tokens computed before, all requests at once."""
    fill_us: int
    steps_us: tuple[tuple[int, ...], ...]
    """Per repeat the time of every step between T(n1) and T(n2); their sum is T(n2) - T(n1)."""

    @property
    def step_us(self) -> float:
        return statistics.median(sum(steps) / len(steps) for steps in self.steps_us)

    @property
    def tokens_per_s(self) -> float:
        return self.batch * 1e6 / self.step_us


@dataclass(frozen=True, slots=True)
class Prefill:
    """One length of the prefill grid."""

    context_tokens: int
    computed_tokens: int
    """Less than the context where a prefix is shared."""
    times_us: tuple[int, ...]
    """From submission to the first token, one per repeat."""

    @property
    def tokens_per_s(self) -> float:
        return self.computed_tokens * 1e6 / statistics.median(self.times_us)


class Front:
    """The front of an engine in this process: mailbox and outbox of its loop."""

    def __init__(self, core: Core, clock: Clock) -> None:
        self.core = core
        self._clock = clock
        desk = Desk(core.scheduler, vocab_size=core.model.vocab)
        self._loop = Loop(desk, core.executor, self, self, clock, overlap=core.resolved.overlap)
        self._inbox: list[wire.Request] = []
        self._said: dict[int, int] = {}  # open request -> its tokens so far
        self._ids = iter(range(1, 1 << 62))
        self._steps_at_us: list[int] = []
        self.cached_tokens = 0
        """Of all requests since the last `start`."""

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._said)

    def drain(self, *, wait: bool) -> list[wire.Request]:
        """Called by the loop: what waits to be heard."""
        messages, self._inbox = self._inbox, []
        return messages

    def send(self, report: wire.Report) -> None:
        """Called by the loop: count tokens."""
        match report:
            case wire.Deltas():
                self._steps_at_us.append(self._clock.now_us())
                for delta in report.items:
                    if delta.error is not None:
                        raise SetupError(f"the engine failed a request of the benchmark: {delta.error}")
                    self.cached_tokens += delta.cached_tokens or 0
                    self._said[delta.request_id] += len(delta.ids) // wire.IDS_DTYPE.itemsize
                    if delta.finish is not None:
                        del self._said[delta.request_id]
            case wire.Refused():
                raise SetupError(f"the engine refused a prompt of the benchmark: {report.reason}")
            case _:
                pass

    def start(self, prompts: Sequence[NDArray[np.int32]], tokens_max: int) -> int:
        """Submit requests; when that was."""
        assert not self._said, "the last requests are still open"
        self.cached_tokens = 0
        sampling = SamplingParams(temperature=0.0, tokens_max=tokens_max, seed=0)
        for prompt in prompts:
            request_id = next(self._ids)
            self._said[request_id] = 0
            self._inbox.append(wire.Generate(request_id, wire.ids_bytes(prompt), sampling))
        return self._clock.now_us()

    def until(self, tokens: int) -> list[int]:
        """Run until every open request has that many tokens; when each step on the way ended."""
        self._steps_at_us = []
        while self._said and min(self._said.values()) < tokens:
            self._loop.turn()
        return self._steps_at_us

    def finish(self) -> int:
        """Run until every request has ended; when that was."""
        while self._said:
            self._loop.turn()
        ended_us = self._clock.now_us()
        self._settle()
        return ended_us

    def abort(self) -> None:
        """End every request now."""
        self._inbox.append(wire.Abort(list(self._said)))
        self.finish()

    def flush(self) -> None:
        """Forget every cached prefix."""
        self._inbox.append(wire.Flush())
        self._loop.turn()

    def _settle(self) -> None:
        """Let a step that was launched ahead of the last result retire."""
        while not self.core.scheduler.idle:
            self._loop.turn()
        self._loop.turn()


@dataclass(frozen=True, slots=True)
class Prompts:
    """Random ids by key; all prompts begin with the same `shared_tokens`."""

    vocab: int
    shared_tokens: int
    seed: int

    def draw(self, tokens: int, *key: int) -> NDArray[np.int32]:
        """One prompt; equal keys make equal ones."""
        shared = self._random(min(self.shared_tokens, tokens), SHARED)
        return np.concatenate([shared, self._random(tokens - len(shared), *key)])

    def _random(self, tokens: int, *key: int) -> NDArray[np.int32]:
        low = min(LOW_ID, self.vocab // 2)
        return np.random.default_rng((self.seed, *key)).integers(low, self.vocab, tokens, dtype=np.int32)


class Bench:
    """The grids of one engine."""

    def __init__(self, front: Front, options: argparse.Namespace) -> None:
        self.left_out: list[str] = []
        self._front = front
        self._prompts = Prompts(front.core.model.vocab, options.shared_prefix, options.prompt_seed)
        self._options = options
        self._first, self._last = options.steps

    def run(self) -> tuple[list[Decode], list[Prefill]]:
        """Measure every cell that fits."""
        self._front.start([self._prompts.draw(WARM_UP_TOKENS, 0)], self._first)
        self._front.finish()
        prefills = [self.prefill(tokens) for tokens in self._options.prefills if self._fits(1, tokens, 1)]
        tail = self._last + self._stagger(max(self._options.batch, default=1))
        decodes = [
            self.decode(batch, context_tokens)
            for context_tokens in self._options.contexts
            for batch in self._options.batch
            if self._fits(batch, context_tokens, tail)
        ]
        return decodes, prefills

    def decode(self, batch: int, context_tokens: int) -> Decode:
        """Measure one cell."""
        front, begin, end = self._front, self._first, self._last
        self._say(f"decode {batch} x {context_tokens}")
        prompts = [self._prompts.draw(context_tokens, 1, context_tokens, row) for row in range(batch)]
        front.flush()
        self._share()
        started_us = front.start(prompts, 1)
        fill_us = front.finish() - started_us
        fill_tokens = batch * context_tokens - front.cached_tokens
        repeats: list[tuple[int, ...]] = []
        for _ in range(self._options.repeats):
            front.start(prompts, end + self._stagger(batch))
            before_us = front.until(begin)[-1]
            steps_at_us = np.array([before_us, *front.until(end)])
            if front.open < batch:
                raise SetupError(
                    f"decode {batch} x {context_tokens}: requests ended before the last of them began, for only "
                    f"{front.cached_tokens} prompt tokens were found in the cache; give it more KV cache"
                )
            repeats.append(tuple(np.diff(steps_at_us).tolist()))
            front.abort()
        return Decode(batch, context_tokens, fill_tokens, fill_us, tuple(repeats))

    def prefill(self, tokens: int) -> Prefill:
        """Measure one length."""
        front = self._front
        self._say(f"prefill {tokens}")
        computed_tokens = 0
        times_us: list[int] = []
        self._share()
        for repeat in range(self._options.repeats + 1):
            prompt = self._prompts.draw(tokens, 2, tokens, repeat)
            started_us = front.start([prompt], 1)
            times_us.append(front.finish() - started_us)
            computed_tokens = tokens - front.cached_tokens
        return Prefill(tokens, computed_tokens, tuple(times_us[1:]))

    def _share(self) -> None:
        """Bring the shared prefix into the cache, if there is one."""
        if self._prompts.shared_tokens:
            self._front.start([self._prompts.draw(self._prompts.shared_tokens)], 1)
            self._front.finish()

    def _stagger(self, batch: int) -> int:
        """Steps by which the first request of a batch may be ahead of the last, all prompts being cached."""
        resolved = self._front.core.resolved
        return 2 + batch * (resolved.block_tokens + 1) // resolved.prefill_tokens_max

    def _fits(self, batch: int, context_tokens: int, new_tokens: int) -> bool:
        """Whether a cell fits the context and the KV cache; if not, it is left out by name."""
        resolved = self._front.core.resolved
        shared_blocks = min(self._prompts.shared_tokens, context_tokens) // resolved.block_tokens
        own_blocks = -(-(context_tokens + new_tokens) // resolved.block_tokens) - shared_blocks
        blocks = shared_blocks + batch * own_blocks
        name = f"{batch} x {context_tokens}"
        if context_tokens + new_tokens > resolved.context_tokens_max:
            self.left_out.append(f"{name}: the context holds {resolved.context_tokens_max} tokens")
        elif batch > resolved.slots_max:
            self.left_out.append(f"{name}: at most {resolved.slots_max} requests run at once")
        elif blocks > resolved.blocks_total:
            self.left_out.append(f"{name}: takes {blocks} KV blocks, there are {resolved.blocks_total}")
        else:
            return True
        return False

    def _say(self, what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}\033[K", end="", file=sys.stderr, flush=True)


def report(decodes: Sequence[Decode], prefills: Sequence[Prefill], left_out: Sequence[str]) -> str:
    """The grids as text."""
    lines: list[str] = []
    if decodes:
        lines.append(
            f"{'batch':>6} {'context':>8} {'step ms':>9} {'tps/user':>9} {'tok/s':>9} {'fill tok/s':>11}"
        )
    for row in decodes:
        fill = row.fill_tokens * 1e6 / row.fill_us
        rates = f"{1e6 / row.step_us:>9.1f} {row.tokens_per_s:>9.1f} {fill:>11.0f}"
        lines.append(f"{row.batch:>6} {row.context_tokens:>8} {row.step_us / 1000:>9.3f} {rates}")
    if prefills:
        lines.append(f"{'prompt':>15} {'computed':>9} {'ms':>9} {'tok/s':>9}")
    for row in prefills:
        time_ms = statistics.median(row.times_us) / 1000
        lines.append(
            f"{row.context_tokens:>15} {row.computed_tokens:>9} {time_ms:>9.1f} {row.tokens_per_s:>9.0f}"
        )
    return "\n".join([*lines, *(f"left out: {each}" for each in left_out)])


def _record(
    core: Core, options: argparse.Namespace, started_at: str, left_out: Sequence[str]
) -> dict[str, Any]:
    return {
        "benchmark": "engine",
        "commit": commit(),
        "machine": asdict(machine()),
        "device": core.device,
        "torch": str(torch.__version__),
        "torch_threads": torch.get_num_threads(),
        "started_at": started_at,
        "seed": options.prompt_seed,
        "config": {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
        },
        "resolved": [list(choice) for choice in core.resolved.choices],
        "left_out": list(left_out),
    }


def _numbers(text: str) -> list[int]:
    words = [word for word in text.split(",") if word]
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers above 0")
    return [int(word) for word in words]


def _steps(text: str) -> list[int]:
    numbers = _numbers(text)
    if len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not N1,N2 with N1 < N2")
    return numbers


def _parser() -> Parser:
    made = Parser("bench engine", (__doc__ or "").split("\n")[0])
    add = made.add_argument
    add(
        "--batch",
        type=_numbers,
        default=BATCHES,
        metavar="N,N",
        help="requests that decode at once (default 1,4,8)",
    )
    add(
        "--contexts",
        type=_numbers,
        default=CONTEXTS,
        metavar="N,N",
        help="tokens of their prompts; may be empty (default 512,2048)",
    )
    add(
        "--prefills",
        type=_numbers,
        default=PREFILLS,
        metavar="N,N",
        help="prompts to prefill; may be empty (default 512,2048,8192)",
    )
    add(
        "--steps",
        type=_steps,
        default=STEPS,
        metavar="N1,N2",
        help="decode is timed between these tokens (default 33,161)",
    )
    add("--shared-prefix", type=int, default=0, metavar="N", help="tokens with which every prompt begins")
    add("--repeats", type=int, default=3, metavar="N", help="times to measure each cell (default 3)")
    add("--prompt-seed", dest="prompt_seed", type=int, default=0, metavar="N", help="seed of the prompts")
    add("--out", type=Path, metavar="FILE", help="write raw rows to this file")
    add_options(made, ("model", "cache", "scheduler", "device"))
    return made


def _needed(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """What the grid needs of the engine, where the command line does not say otherwise."""
    batch = max(options.batch, default=1)
    room = options.steps[1] + 2 + batch
    yield "max_model_len", max([WARM_UP_TOKENS, *options.contexts, *options.prefills]) + room
    yield "rows_max", batch


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; print a table, write JSON if asked. Return 0, or 1 where a cell was left out."""
    options = _parser().parse_args(argv)
    config = config_of(options, prefer={"log_level": "warning", **dict(_needed(options))})
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    core = boot(config)
    gc.collect()
    gc.freeze()
    bench = Bench(Front(core, MonotonicClock()), options)
    decodes, prefills = bench.run()
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(f"{core.device}\n{report(decodes, prefills, bench.left_out)}")
    if options.out:
        rows = {
            "decode": [
                asdict(row) | {"step_us": row.step_us, "tokens_per_s": row.tokens_per_s} for row in decodes
            ],
            "prefill": [asdict(row) | {"tokens_per_s": row.tokens_per_s} for row in prefills],
        }
        record = _record(core, options, started_at, bench.left_out) | rows
        options.out.write_bytes(msgspec.json.encode(record) + b"\n")
    return int(bool(bench.left_out))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
