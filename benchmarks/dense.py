# SPDX-License-Identifier: MIT
"""How near are the dense and pointwise kernels to what the GPU's memory can do, at the sizes of decode steps?

    python benchmarks/dense.py [--only SUBSTRING] [--tokens 1,4,16,64] [--json FILE]

Each op of a decode layer that is neither attention nor experts, at the shapes of Moonlight-16B-A3B and
Qwen3-8B, bf16, by the kernel that is chosen for it and by every other that can do it (the vendor's library
among them). The floor is the op's bytes over 4.3 TB/s (a measured copy). A question is one CUDA graph of many
calls, each on weights and inputs that have left the caches, as in a model: `us` is the median replay over the
calls. Every answer is first held against the reference. Exit code 1 when one is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tokenspeed.kernels import Band, Device, Kernel, describe, registry, select
from tokenspeed.kernels.check import faults
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.spec import Op, Sizes, Traits, TraitValue

BYTES_PER_US = 4.3e6
COLD_BYTES = 200 << 20
"""What the calls of a graph read before one reads the same again: several times the cache."""
CALLS_LEAST, CALLS_MAX = 8, 64
"""Calls of a graph."""
REPLAYS = 21
CHECKED_BYTES = 64 << 20
"""Questions on larger weights are timed only: their reference in float64 would take longer than all the rest."""

BF16 = torch.bfloat16


class DrawOnDevice(Draw):
    """Numbers drawn where they are used: gigabytes in no time."""

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        """Draw normal numbers."""
        return torch.randn(shape, dtype=dtype, device=self.device).mul_(scale)


@dataclass(frozen=True, slots=True)
class Question:
    """One op at one shape; `name` says where a model has it."""

    name: str
    op: str
    traits: Traits

    def sizes(self, tokens: int) -> Sizes:
        return Sizes(contexts=(64,) * tokens) if self.op.startswith("rope.") else Sizes(tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one kernel takes."""

    name: str
    op: str
    kernel: str
    tokens: int
    us: float
    floor_us: float
    share: float


def _dense(name: str, inputs: int, outputs: int, **more: TraitValue) -> Question:
    return Question(name, "linear.dense", {"dtype": BF16, "in_dim": inputs, "out_dim": outputs, **more})


MLA: Traits = {"dtype": BF16, "heads": 16}
PLACED: Traits = {**MLA, "latent": 512, "rope": 64, "block_tokens": 64, "interleaved": True}
GQA: Traits = {
    "dtype": BF16,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "rotary_dim": 128,
    "block_tokens": 64,
}
QUESTIONS = (
    _dense("moonlight.q_kv_a", 2048, 3648),
    _dense("moonlight.o", 2048, 2048),
    _dense("moonlight.gate_up", 2048, 22528),
    _dense("moonlight.down", 11264, 2048),
    _dense("moonlight.head", 2048, 163840, float32_out=True),
    _dense("qwen3-8b.qkv", 4096, 6144),
    _dense("qwen3-8b.o", 4096, 4096),
    _dense("qwen3-8b.gate_up", 4096, 24576),
    _dense("qwen3-8b.down", 12288, 4096),
    _dense("moonlight.o.int8", 2048, 2048, format="int8"),
    _dense("moonlight.o.fp8", 2048, 2048, format="fp8_block"),
    _dense("qwen3-8b.gate_up.fp8", 4096, 24576, format="fp8_block"),
    Question("moonlight.absorb", "rope.mla_absorb_write", {**PLACED, "nope_dim": 128}),
    Question("moonlight.raise", "linear.heads", {**MLA, "in_dim": 512, "out_dim": 128}),
    Question("moonlight.rope", "rope.mla_write", PLACED),
    Question("qwen3-8b.rope", "rope.gqa_write", {**GQA, "qk_norm": True}),
    Question("moonlight.norm", "norm.add_rms", {"dtype": BF16, "width": 2048}),
    Question("moonlight.silu_mul", "activation.silu_mul", {"dtype": BF16, "ffn": 11264}),
    Question("moonlight.embed", "embedding.lookup", {"dtype": BF16, "width": 2048}),
)


def kernels_of(question: Question, device: Device) -> Iterator[tuple[Kernel, Traits]]:
    """The chosen kernel, and every other that can run but the reference."""
    chosen = select(registry(), question.op, question.traits, device)
    yield chosen.kernel, chosen.traits
    for refusal in chosen.refusals:
        if refusal.kernel.band > Band.REF and refusal.reasons[0].startswith("could run"):
            yield refusal.kernel, chosen.traits


def calls_of(op: Op, kernel: Kernel, traits: Traits, sizes: Sizes, device: Device) -> list[Callable[[], Any]]:
    """As many equal calls on memory of their own as it takes to be cold again at the first."""
    built = kernel.build(traits, device)
    copies = min(CALLS_MAX, max(1, math.ceil(COLD_BYTES / op.cost(traits, sizes).bytes)))

    def call(seed: int) -> Callable[[], Any]:
        inputs = op.inputs(traits, sizes, DrawOnDevice(seed, device.torch))
        args = dict(inputs.args)
        if inputs.weights:
            assert built.prepare is not None
            (name,) = inputs.weights_as
            args[name] = built.prepare(*inputs.weights)
        return lambda: built.call(**args)

    return [call(seed) for seed in range(copies)]


def timed_us(calls: list[Callable[[], Any]]) -> float:
    """The median time of one call in a graph that makes all of them, some more than once if they are few."""
    count = max(CALLS_LEAST, len(calls))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls[0]()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            calls[i % len(calls)]()
    graph.replay()
    times: list[float] = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / count)
    return statistics.median(times)


def commit() -> str:
    """The commit that is measured."""
    told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def main() -> int:
    """Ask all questions and print what comes of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--tokens", default="1,4,16,64", help="tokens of a step")
    parser.add_argument("--json", type=Path, help="write the answers here")
    options = parser.parse_args()
    device, answers, wrong = describe("cuda"), list[Answer](), 0
    for question in QUESTIONS:
        if options.only not in question.name:
            continue
        op = registry().op(question.op)
        for tokens in map(int, options.tokens.split(",")):
            sizes = question.sizes(tokens)
            for kernel, traits in kernels_of(question, device):
                floor_us = op.cost(traits, sizes).bytes / BYTES_PER_US
                if floor_us * BYTES_PER_US <= CHECKED_BYTES:
                    for fault in faults(op, kernel, traits, sizes, device, seed=tokens):
                        wrong += 1
                        print(f"WRONG {question.name} T={tokens} {kernel.name}: {fault}")
                us = timed_us(calls_of(op, kernel, traits, sizes, device))
                answers.append(
                    Answer(question.name, op.name, kernel.name, tokens, us, floor_us, floor_us / us)
                )
                print(
                    f"{question.name:22} {kernel.name:8} T={tokens:<4} {us:8.2f} us  floor {floor_us:7.2f}  "
                    f"{floor_us / us:4.0%}",
                    flush=True,
                )
    if options.json:
        told = {
            "commit": commit(),
            "device": str(device),
            "torch": torch.__version__,
            "rows": list(map(asdict, answers)),
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
