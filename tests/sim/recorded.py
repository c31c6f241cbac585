# SPDX-License-Identifier: MIT
"""Record the real loop under real threads, and replay what was recorded.

    python tests/sim/recorded.py RUNS [FIRST_SEED]

A run is the product's desk, loop, scheduler and null executor on the machine's own clock. Client threads send
turns, take answers, leave at random moments, cancel past the desk, flush; steps fail at random; the journal goes
to a file as `--event-log` writes it. Which thread comes first is up to the machine: no two runs are alike. Prints
a line per run and exits with 1 at the first that does not replay to the same decisions.
"""

from __future__ import annotations

import queue
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.log import get_logger
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Plan, Scheduler, SchedulerOptions
from tokenspeed.engine import wire
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.journal import JournalFile
from tokenspeed.engine.loop import Loop
from tokenspeed.exec.null import NullExecutor
from tokenspeed.exec.protocol import StepResult
from tokenspeed.sim.replay import Replay, read_journal, replay

CLIENTS = 4
TURNS = 30
VOCAB = 1000
POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"floor": True, "floor_mtps": 40_000, "cost": (100.0, 10.0, 0.01, 1.0, 0.0)},
    {"session_admission": True, "fair_share": True},
    {"floor": True, "floor_mtps": 20_000, "session_admission": True, "fair_share": True, "retention": True},
)
"""What the scheduler heeds, by run."""


class Ends:
    """The loop's mailbox and outbox, between threads."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[wire.Request] = queue.SimpleQueue()
        self._answers: dict[int, queue.SimpleQueue[wire.Delta | None]] = {}

    def call(self, message: wire.Request) -> None:
        self._messages.put(message)

    def open(self, request_id: int) -> queue.SimpleQueue[wire.Delta | None]:
        """Where the answer to a request comes; None: it was refused."""
        self._answers[request_id] = queue.SimpleQueue()
        return self._answers[request_id]

    def drain(self, *, wait: bool) -> Iterator[wire.Request]:
        try:
            yield self._messages.get(timeout=0.01) if wait else self._messages.get_nowait()
            while True:
                yield self._messages.get_nowait()
        except queue.Empty:
            return

    def send(self, report: wire.Report) -> None:
        match report:
            case wire.Deltas():
                for delta in report.items:
                    self._answers[delta.request_id].put(delta)
            case wire.Refused():
                self._answers[report.request_id].put(None)
            case _:
                pass


class Faulty(NullExecutor):
    """A null executor some of whose rows fail, in prompts and in answers."""

    def __init__(self, slots: int, random_: random.Random) -> None:
        super().__init__(slots=slots, step_us=0)
        self._random = random_
        self._plans: dict[int, np.ndarray] = {}

    def launch(self, plan: Plan):  # the base's own flight
        self._plans[plan.step] = plan.sampled.copy()
        return super().launch(plan)

    def retire(self, flight: object) -> StepResult:
        result = super().retire(flight)  # pyright: ignore[reportArgumentType]
        sampled = self._plans.pop(result.step)
        tokens = result.tokens.copy()
        for sample in range(len(tokens)):
            if self._random.random() < 0.002:
                tokens[sample] = -1
        unsampled = np.flatnonzero(sampled == 0).tolist()
        faults = tuple(row for row in unsampled if self._random.random() < 0.02)
        return replace(result, tokens=tokens, faults=faults)


def converse(index: int, seed: int, ends: Ends, scheduler: Scheduler) -> None:
    """A session: turns that grow, some of which it leaves."""
    draw = random.Random(f"{seed}/{index}")
    history = list(range(1, 20)) if draw.random() < 0.5 else [draw.randrange(VOCAB) for _ in range(19)]
    salt = draw.choice((b"", b"a", b"b"))
    for turn in range(TURNS):
        request_id = index * 1000 + turn + 1
        history += [draw.randrange(VOCAB) for _ in range(draw.randrange(1, 40))]
        sampling = SamplingParams(
            seed=0,
            tokens_max=draw.randrange(1, 60),
            tokens_min=draw.randrange(0, 4),
            stop_ids=tuple(draw.sample(range(VOCAB), 30)),
        )
        answer = ends.open(request_id)
        ids = wire.ids_bytes(np.array(history[-300:], np.int32))
        ends.call(wire.Generate(request_id, ids, sampling, salt, draw.randrange(-2, 3), 0, 0))
        leave_at = draw.randrange(0, 30) if draw.random() < 0.3 else None
        said = 0
        while (delta := answer.get(timeout=60)) is not None and delta.finish is None:
            history += wire.ids_array(delta.ids).tolist()
            said += 1
            if said == leave_at:
                if draw.random() < 0.5:
                    scheduler.cancel(request_id)  # past the desk, while the loop may be anywhere
                ends.call(wire.Abort([request_id]))
        if draw.random() < 0.05:
            ends.call(wire.Flush())


def record(seed: int, path: Path) -> None:
    """One run, to a journal at `path`."""
    draw = random.Random(f"{seed}/options")
    slots = draw.choice((2, 3, 4))
    options = SchedulerOptions(
        blocks_total=draw.choice((30, 60, 200)),
        block_tokens=draw.choice((4, 16)),
        slots_max=slots,
        tokens_per_step_max=slots + draw.choice((16, 64)),
        rows_per_step_max=slots,
        prefill_tokens_max=draw.choice((8, 64)),
        waiting_max=64,
        context_tokens_max=400,
        overlap=draw.random() < 0.7,
        hash_key=draw.randbytes(16),
        seed=seed,
        journal=True,
        **POLICIES[draw.randrange(len(POLICIES))],
    )
    ends, scheduler = Ends(), Scheduler(options)
    executor = Faulty(slots, random.Random(f"{seed}/faults"))
    with JournalFile(path, scheduler, bytes_max=1 << 24) as journal:
        loop = Loop(
            Desk(scheduler, vocab_size=VOCAB),
            executor,
            ends,
            ends,
            MonotonicClock(),
            overlap=options.overlap,
            journal=journal,
        )
        engine = threading.Thread(target=loop.run)
        clients = [
            threading.Thread(target=converse, args=(index, seed, ends, scheduler))
            for index in range(1, CLIENTS + 1)
        ]
        for thread in (engine, *clients):
            thread.start()
        for client in clients:
            client.join()
        ends.call(wire.Stop())
        engine.join()


def run(seed: int) -> Replay:
    """Record a run and replay it."""
    get_logger("engine").setLevel("CRITICAL")  # refusals and failed rows are part of it
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        record(seed, path)
        return replay(read_journal(path))


def main(runs: int, first: int) -> int:
    """Record and replay; 1 at the first difference."""
    for seed in range(first, first + runs):
        found = run(seed)
        print(
            f"seed {seed}: {found.events} events, {found.steps} steps, {found.difference or 'equal'}",
            flush=True,
        )
        if found.difference is not None:
            return 1
    print(f"{runs} of {runs} recorded runs replay to the same decisions")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
