# SPDX-License-Identifier: MIT
"""What does a whole decoder layer cost in a decode step, and where does its time go, kernel by kernel?

    python benchmarks/layer.py [--shape moonlight-16b-a3b] [--rows 1,4,16,64] [--context 2048]
        [--kernels OP=NAME[,OP=NAME]] ... [--timeline] [--json FILE]

In: the shape of `make_checkpoint.py`, cut to `LAYERS` equal layers (dense first layers left out) with random
weights and a small vocabulary. Each number of rows is one CUDA graph of the model's own `forward`, as a decode
step records it; `us` is the median replay over the layers. A layer's weights and KV have left the cache when
they are read again where the layers together read several times its size: true of this shape from one row on.
Every `--kernels` is a variant of its own beside the kernels that are chosen ("" stands for those alone); it is
first held against them: logits may differ as roundings do.

With `--timeline` kernels are listed in order with `us`, the time from the end of the kernel before to their own
end (under early launches their own durations overlap, these do not), and `from`, their start against that end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from make_checkpoint import SHAPES

from tokenspeed import kernels, models, weights
from tokenspeed.bench.provenance import commit
from tokenspeed.exec.arena import Arena
from tokenspeed.kernels.compiling import side_by_side
from tokenspeed.layers.step import StepInputs

LAYERS = 4
VOCAB = 1024
BLOCK_TOKENS = 64
REPLAYS, PROFILED = 41, 8
COMPILERS = 14


@dataclass(frozen=True, slots=True)
class Recorded:
    """A graph of one decode step, and the logits it leaves."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor


def model_of(shape: str, overrides: str, context: int) -> models.Model:
    """Build the shape's model of a few equal layers, with the kernels that are chosen or named."""
    config = SHAPES[shape] | {
        "num_hidden_layers": LAYERS,
        "first_k_dense_replace": 0,
        "vocab_size": VOCAB,
        "max_position_embeddings": context + BLOCK_TOKENS,
        "eos_token_id": 1,
    }
    with kernels.overriding(*filter(None, overrides.split(","))):
        return models.build(config, device="cuda", block_tokens=BLOCK_TOKENS)


def decode_inputs(rows: int, context: int) -> StepInputs:
    """`rows` rows, each at the end of a context of its own."""
    blocks = -(-context // BLOCK_TOKENS)
    random = np.random.default_rng(0)
    table = random.permutation(rows * blocks).reshape(rows, blocks).astype(np.int32)
    positions = np.full(rows, context - 1, np.int64)
    places = table[:, -1].astype(np.int64) * BLOCK_TOKENS + (context - 1) % BLOCK_TOKENS
    lens, starts = np.full(rows, context, np.int32), np.arange(rows + 1, dtype=np.int32)

    def there(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).cuda()

    return StepInputs(
        token_ids=there(random.integers(0, VOCAB, rows)),
        positions=there(positions),
        write_index=there(places),
        decode_rows=rows,
        rows=rows,
        row_starts=there(starts),
        context_lens=there(lens),
        block_table=there(table),
        sample_index=there(np.arange(rows, dtype=np.int64)),
        row_starts_np=starts,
        context_lens_np=lens,
    )


def fill(arena: Arena) -> None:
    """Write the same random numbers into all KV."""
    torch.manual_seed(0)
    for layer in arena.layers:
        for tensor in layer if isinstance(layer, tuple) else (cast(torch.Tensor, layer),):
            tensor.normal_()


def record(run: Callable[[], torch.Tensor]) -> Recorded:
    """Record `run` as one graph, once it has compiled and settled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        logits = run()
    return Recorded(graph, logits)


def timed_us(graph: torch.cuda.CUDAGraph) -> float:
    """The median replay."""
    times: list[float] = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def timeline_of(graph: torch.cuda.CUDAGraph) -> list[dict[str, Any]]:
    """The kernels of one layer (the second to last), in order, each by the median of several replays."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            graph.replay()
            torch.cuda.synchronize()
    found = sorted(
        (event.time_range.end, event.time_range.start, event.name)
        for event in cast(Any, profiler.events())
        if event.device_type.name == "CUDA"
    )
    each = len(found) // PROFILED
    seen = [found[at : at + each] for at in range(each, PROFILED * each, each)]
    marks = [at for at, kernel in enumerate(seen[0]) if "decode" in kernel[2]]
    rows: list[dict[str, Any]] = []
    for at in range(marks[-3] + 1, marks[-2] + 1):
        spans = [(run[at][1] - run[at - 1][0], run[at][0] - run[at - 1][0]) for run in seen]
        begun, us = (statistics.median(span[i] for span in spans) for i in range(2))
        rows.append({"kernel": seen[0][at][2], "us": round(us, 2), "from": round(begun, 2)})
    return rows


def main() -> int:
    """Time every variant at every number of rows and print what comes of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="moonlight-16b-a3b", choices=SHAPES)
    parser.add_argument("--rows", default="1,4,8,16,32,64")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--kernels", action="append", default=[], help="a variant: OP=NAME,...")
    parser.add_argument("--timeline", action="store_true")
    parser.add_argument("--commit", default="", help="where the tree is not a repository")
    parser.add_argument("--json", type=Path, help="write the answers here")
    options = parser.parse_args()
    told: dict[str, Any] = {
        "benchmark": "layer", "commit": options.commit or commit(), "command": sys.argv[1:],
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "layers": LAYERS,
        "context": options.context, "rows": [],
    }  # fmt: skip
    for row in answers(options):
        told["rows"].append(row)
        print(
            f"{row['kernels'] or 'chosen':40} rows {row['rows']:<3} {row['us']:8.2f} us  {row['differs']:.1e}"
        )
        for step in row["timeline"]:
            print(f"    {step['us']:8.2f} {step['from']:8.2f}  {step['kernel'][:70]}")
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


@torch.inference_mode()
def answers(options: argparse.Namespace) -> Any:
    """One dict for every variant and number of rows."""
    counts = [int(word) for word in options.rows.split(",")]
    first = {}
    for overrides in options.kernels or [""]:
        model = model_of(options.shape, overrides, options.context)
        weights.load_dummy(model)
        blocks = max(counts) * -(-options.context // BLOCK_TOKENS)
        arena = Arena(
            model.kv_spec, blocks=blocks, block_tokens=BLOCK_TOKENS, dtype=model.dtype, device=model.device
        )
        laid = {rows: decode_inputs(rows, options.context) for rows in counts}
        with side_by_side(COMPILERS):
            for inputs in laid.values():
                model.forward(inputs, arena)
        for rows, inputs in laid.items():
            fill(arena)
            recorded = record(partial(model.forward, inputs, arena))
            us = timed_us(recorded.graph) / LAYERS
            logits = recorded.logits.double()
            base = first.setdefault(rows, logits.clone())
            yield {
                "kernels": overrides, "rows": rows, "us": us,
                "differs": float((logits - base).norm() / base.norm()),
                "timeline": timeline_of(recorded.graph) if options.timeline else [],
            }  # fmt: skip
            del recorded
        del model, arena
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
