# SPDX-License-Identifier: MIT
"""Does the GPU ever wait for the host while requests decode? Idle time between steps, and the host's time per step.

    python benchmarks/gpu_idle.py CHECKPOINT [--batch 16] [--context 8192] [--steps 64] [engine options] [--out FILE]

In: a checkpoint (or its config.json alone, with `--load-format dummy`) and a GPU. Out: a table, and as JSON the figures
of every step. The loop, the control plane, the executor and the kernels are those that serve, in this process and
without HTTP. Two runs of the same steps: one as it is, for the times of steps and of the host's work in them; one under
the profiler, for what the GPU did when. A step is idle from its last kernel to the first kernel of the next, copies
between them included; kernels in between the profiler's own steps are all the model's and the sampler's.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.errors import SetupError
from tokenspeed.base.flags import Parser, add_options, config_of
from tokenspeed.bench.engine import Front
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.engine.boot import boot

WARM_STEPS = 24


class Span(NamedTuple):
    """One activity of the GPU."""

    start_ns: int
    end_ns: int
    name: str

    @property
    def copies_in(self) -> bool:
        return self.name.startswith("Memcpy HtoD")

    @property
    def computes(self) -> bool:
        return not self.name.startswith(("Memcpy", "Memset"))


class Timed:
    """A function that remembers how long each call took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.times_us: list[float] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        started_ns = time.perf_counter_ns()
        result = self._function(*args, **options)
        self.times_us.append((time.perf_counter_ns() - started_ns) / 1000)
        return result


def activities(profiler: profile) -> list[Span]:
    """What the GPU did, in order."""
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    spans = [
        Span(event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in events
        if event.device_type() == torch.autograd.DeviceType.CUDA
    ]
    return sorted(span for span in spans if span.end_ns > span.start_ns)


def steps_of(spans: Sequence[Span]) -> list[list[Span]]:
    """Cut activities into steps: each begins with the copy of its inputs."""
    steps: list[list[Span]] = []
    for span in spans:
        if span.copies_in:
            steps.append([])
        if steps:
            steps[-1].append(span)
    return [kernels for step in steps if (kernels := [span for span in step if span.computes])]


def idle(steps: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """How long the GPU computes nothing between steps and within them."""
    gaps_us = [
        (after[0].start_ns - max(span.end_ns for span in before)) / 1000
        for before, after in itertools.pairwise(steps)
    ]
    inside_us: list[float] = []
    for step in steps:
        waited = reached = 0
        for span in step:
            waited += max(0, span.start_ns - reached) if reached else 0
            reached = max(reached, span.end_ns)
        inside_us.append(waited / 1000)
    window_us = (max(span.end_ns for span in steps[-1]) - steps[0][0].start_ns) / 1000
    return {
        "steps": len(steps),
        "kernels_per_step": statistics.median(len(step) for step in steps),
        "step_us": window_us / len(steps),
        "idle_between_us": gaps_us,
        "idle_between_share": sum(gaps_us) / window_us,
        "idle_within_share": sum(inside_us) / window_us,
    }


def main(words: Sequence[str]) -> None:
    parser = Parser("gpu_idle", __doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="requests that decode")
    parser.add_argument("--context", type=int, default=8192, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=64, help="steps looked at")
    parser.add_argument("--out", type=Path, help="write JSON here")
    add_options(parser, ("model", "cache", "scheduler", "device"))
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        raise SetupError("gpu_idle looks at a GPU, and torch sees none here")
    tokens = options.context + 4 * options.steps + 8 * WARM_STEPS
    core = boot(config_of(options, prefer={"device": "cuda", "max_model_len": tokens}))
    launch, retire = Timed(core.executor.launch), Timed(core.executor.retire)
    core.executor.launch, core.executor.retire = launch, retire  # type: ignore[method-assign]
    front = Front(core, MonotonicClock())
    random = np.random.default_rng(0)
    prompts = [
        random.integers(16, core.model.vocab, options.context, dtype=np.int32) for _ in range(options.batch)
    ]
    front.start(prompts, tokens - options.context)
    front.until(WARM_STEPS)
    launch.times_us.clear()
    retire.times_us.clear()
    ends_us = front.until(WARM_STEPS + options.steps)
    launch_us, retire_us = list(launch.times_us), list(retire.times_us)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        front.until(WARM_STEPS + 2 * options.steps)
        torch.cuda.synchronize()
    front.abort()
    found = idle(steps_of(activities(profiler))[2:-2])
    step_us = np.diff(ends_us).tolist()
    record = {
        "commit": commit(), "machine": dataclasses.asdict(machine()), "argv": list(words),
        "resolved": [list(choice) for choice in core.resolved.choices],
        "batch": options.batch, "context_tokens": options.context,
        "step_us": step_us, "launch_us": launch_us, "retire_us": retire_us, "gpu": found,
    }  # fmt: skip
    rows = {
        "step, us": statistics.median(step_us),
        "host: launch, us": statistics.median(launch_us),
        "host: wait for a step, us": statistics.median(retire_us),
        "profiled step, us": found["step_us"],
        "kernels in a step": found["kernels_per_step"],
        "idle between steps, us": statistics.median(found["idle_between_us"]),
        "idle between steps, %": 100 * found["idle_between_share"],
        "idle between kernels of a step, %": 100 * found["idle_within_share"],
    }
    print(f"batch {options.batch}, context {options.context}")
    for name, value in rows.items():
        print(f"  {name:36} {value:10.2f}")
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SetupError as error:
        sys.exit(str(error))
