# SPDX-License-Identifier: MIT
"""How fast is the engine on this CPU, without HTTP? Decode and prefill of one checkpoint, as JSON.

    python benchmarks/cpu_engine.py CHECKPOINT [--contexts 128,2048,8192] [--prefills 512,4096,8192] [--batch 8]

In: a checkpoint directory. Out: on stdout one JSON object with a row per case: tokens per second, and every step's
microseconds. Runs the real control plane, executor and kernels in this process (`engine.boot`), greedy, random token
ids, prefix cache off, so that every prompt token is computed. Decode rows time the steps that follow the first token;
prefill rows time all steps up to it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tokenspeed.base import config
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Scheduler
from tokenspeed.engine.boot import Core, boot
from tokenspeed.exec.protocol import Executor


@dataclass(frozen=True, slots=True)
class Row:
    """One measured case."""

    kind: str  # "decode" or "prefill"
    batch: int
    context: int
    tokens_per_second: float
    step_us: list[int]


def intlist(text: str) -> list[int]:
    return [int(item) for item in text.split(",") if item]


def step(scheduler: Scheduler, executor: Executor, sampling: SamplingParams) -> tuple[int, int, int]:
    """Run one step; (microseconds, prompt tokens computed, rows that decoded)."""
    start_us = time.perf_counter_ns() // 1000
    plan = scheduler.plan(start_us)
    assert plan is not None, "nothing to run"
    for slot in plan.bound_slots.tolist():
        executor.bind(slot, sampling, np.empty(0, np.int32), np.empty(0, np.int32))
    result = executor.retire(executor.launch(plan))
    scheduler.commit(result.step, result.tokens)
    return time.perf_counter_ns() // 1000 - start_us, len(plan.tokens) - plan.decode_rows, plan.decode_rows


def measure(core: Core, *, batch: int, context: int, outputs: int, seed: int) -> tuple[Row, Row]:
    """(prefill, decode) of `batch` prompts of `context` random tokens, `outputs` tokens each."""
    random = np.random.default_rng(seed)
    sampling = SamplingParams(temperature=0.0, tokens_max=outputs + 1, seed=0)
    for index in range(batch):
        tokens = random.integers(10, core.model.vocab - 10, context, dtype=np.int32)
        status = core.scheduler.submit(
            seed * 1000 + index,
            tokens,
            tokens_max=outputs + batch * 4,
            stop_ids=np.empty(0, np.int32),
            now_us=0,
        )
        assert status.name == "ACCEPTED", status
    prefill_us: list[int] = []
    decode_us: list[int] = []
    while len(decode_us) < outputs:
        spent_us, prompt_tokens, decoded = step(core.scheduler, core.executor, sampling)
        if prompt_tokens:
            prefill_us.append(spent_us)
        elif decoded == batch:
            decode_us.append(spent_us)
    for index in range(batch):
        core.scheduler.cancel(seed * 1000 + index)
    prefill = Row("prefill", batch, context, batch * context / sum(prefill_us) * 1e6, prefill_us)
    return prefill, Row("decode", batch, context, batch * outputs / sum(decode_us) * 1e6, decode_us)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--contexts", type=intlist, default=[128, 2048, 8192], help="decode at these contexts, batch 1"
    )
    parser.add_argument(
        "--prefills", type=intlist, default=[512, 4096, 8192], help="prefill these lengths, batch 1"
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="also decode this many rows at 2,048 tokens; 1 to skip"
    )
    parser.add_argument("--outputs", type=int, default=32, help="decode steps per case")
    parser.add_argument("--quantization", default="none", choices=("none", "int8"))
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    cases = [(1, context) for context in sorted({*args.contexts, *args.prefills})]
    if args.batch > 1:
        cases.append((args.batch, 2048))
    longest = max(context for _, context in cases) + args.outputs + 64
    settings = config.build(
        model=str(args.checkpoint),
        quantization=args.quantization,
        max_model_len=longest,
        rows_max=max(8, args.batch),
        prefix_cache=False,
        threads=args.threads,
    )
    core = boot(settings)
    measure(
        core, batch=1, context=64, outputs=4, seed=1
    )  # warm-up: touch the weights, the arena, the threads
    rows: list[Row] = []
    for seed, (batch, context) in enumerate(cases, start=2):
        prefill, decode = measure(core, batch=batch, context=context, outputs=args.outputs, seed=seed)
        if batch == 1 and context in args.prefills:
            rows.append(prefill)
        if batch > 1 or context in args.contexts:
            rows.append(decode)
        print(f"{args.checkpoint.name} batch {batch} context {context}: prefill {prefill.tokens_per_second:.1f} tok/s, "
              f"decode {decode.tokens_per_second:.1f} tok/s", file=sys.stderr)  # fmt: skip
    json.dump(
        {"resolved": [str(c) for c in core.resolved.choices], "rows": [asdict(row) for row in rows]},
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
