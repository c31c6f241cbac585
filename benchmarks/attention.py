# SPDX-License-Identifier: MIT
"""How near are prefill attention and GQA decode to what a Hopper GPU can do, and to FlashAttention 3 on it?

    python benchmarks/attention.py [--only prefill|raise|few|gqa-extend|gqa-decode ..] [--heads 16 32 128]
                                   [--kernels gluon triton absorbed cudnn ..] [--json FILE]

    prefill      the five published coding-agent cases of MLA prefill (q/k 192, v 128): attention alone
    raise        the same cases as the engine runs them: gather and raise the latents, then attend
    few          few new tokens over a long context: raised, and absorbed as decode does it
    gqa-extend   Qwen3-8B, Llama-3.1-8B and Qwen3-30B-A3B heads over pages
    gqa-decode   one token a row over pages, 32 query heads, 8 kv heads, 128

A time is the median over CUDA graph replays, with 256 MB written before each, so that the L2 cache is cold.
`ratio` is the recorded time of FlashAttention 3 on an H200 over ours: above 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tokenspeed.bench.provenance import commit
from tokenspeed.kernels import describe, registry
from tokenspeed.kernels.hopper import prefill as hopper
from tokenspeed.kernels.spec import Traits

BF16 = torch.bfloat16
BANDWIDTH = 4.3e12
COLD_BYTES = 256 << 20
REPLAYS = 12
QUESTIONS = ("prefill", "raise", "few", "gqa-extend", "gqa-decode")

PREFILL_FA3_US = {
    (16, 1, 8192, 8192): 462.4,
    (16, 1, 8192, 32768): 3022.1,
    (16, 1, 8192, 65536): 7026.9,
    (16, 4, 512, 81920): 2580.8,
    (16, 4, 1024, 81920): 5034.3,
    (32, 1, 8192, 8192): 1117.6,
    (32, 1, 8192, 32768): 6816.6,
    (32, 1, 8192, 65536): 14868.9,
    (32, 4, 512, 81920): 4784.8,
    (32, 4, 1024, 81920): 10163.8,
    (128, 1, 8192, 8192): 4297.7,
    (128, 1, 8192, 32768): 29656.0,
    (128, 1, 8192, 65536): 59583.9,
    (128, 4, 512, 81920): 22521.8,
    (128, 4, 1024, 81920): 40811.6,
}
"""(heads, rows, new, context): microseconds."""

DECODE_FA3_US = {
    (1, 8192): 25.9,
    (1, 65536): 93.2,
    (4, 65536): 296.2,
    (16, 8192): 157.9,
    (16, 65536): 1120.4,
    (64, 8192): 566.7,
}
"""(rows, context): microseconds."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One case with one kernel. `ratio` is 0 where no peer was recorded, `error` says why there is no time."""

    question: str
    case: str
    kernel: str
    us: float = 0.0
    tflop_s: float = 0.0
    gb_s: float = 0.0
    ratio: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        told = self.error or (
            f"{self.us:9.1f} us {self.tflop_s:6.1f} TFLOP/s {self.gb_s:7.1f} GB/s  ratio {self.ratio:.2f}"
        )
        return f"{self.question:<10} {self.case:<34} {self.kernel:<8} {told}"


def microseconds(call: Callable[[], object]) -> float:
    """The median time of a replay of `call` with a cold cache."""
    cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times: list[float] = []
    for _ in range(REPLAYS):
        cold.fill_(1)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def pairs(rows: int, new: int, context: int) -> float:
    return rows * (new * (context - new) + new * (new + 1) / 2)


def prefill(heads: int, rows: int, new: int, context: int, kernel: str) -> Callable[[], object]:
    q = random(rows * new, heads, 192)
    if kernel == "cudnn":
        return _cudnn(q, rows, new, context)
    raised, latents = random(rows * context, heads, 256), random(rows * context, 576)
    out = torch.empty(rows * new, heads, 128, dtype=BF16, device="cuda")
    starts = torch.arange(0, rows * new + 1, new, dtype=torch.int32, device="cuda")
    lens = integers(*(context,) * rows)
    return lambda: hopper.attend_raised(q, raised, latents, 128, starts, lens, 192**-0.5, out)


def _cudnn(q: Tensor, rows: int, new: int, context: int) -> Callable[[], object]:
    """The prefix without a mask, then the new tokens with one; merging the two is not in the time."""
    queries = q.view(rows, new, -1, 192).transpose(1, 2)
    heads = queries.shape[1]
    k, v = (random(rows, context, heads, dim).transpose(1, 2) for dim in (192, 128))
    prefix = context - new

    def call() -> None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            attend = torch.nn.functional.scaled_dot_product_attention
            attend(queries, k[:, :, prefix:], v[:, :, prefix:], is_causal=True)
            if prefix:
                attend(queries, k[:, :, :prefix], v[:, :, :prefix])

    return call


def paged(rows: int, context: int, *shape: int) -> tuple[list[Tensor], Tensor]:
    """Arenas of random blocks, as many as `shape` has widths, and their table."""
    blocks = -(-context // 64)
    table = torch.randperm(rows * blocks, device="cuda").to(torch.int32).view(rows, blocks)
    return [random(rows * blocks, 64, width) for width in shape], table


def kernel_of(
    op: str, name: str, traits: Traits
) -> tuple[Callable[..., object], Callable[..., object] | None]:
    """Build a kernel: its call and, where it has one, its prepare."""
    found = next(kernel for kernel in registry().kernels(op) if kernel.name == name)
    built = found.build(registry().op(op).complete(traits), describe("cuda"))
    return built.call, built.prepare


def raising(heads: int, rows: int, new: int, context: int, kernel: str) -> Callable[[], object]:
    traits = {"dtype": BF16, "heads": heads, "latent": 512, "rope": 64, "nope_dim": 128, "value_dim": 128}
    call, prepare = kernel_of("attention.mla_extend", kernel, {**traits, "block_tokens": 64})
    assert prepare is not None
    (arena,), table = paged(rows, context, 576)
    weights = prepare(random(heads, 128, 512) / 23, random(heads, 512, 128) / 23)
    q = random(rows * new, heads, 192)
    starts = torch.arange(0, rows * new + 1, new, dtype=torch.int32, device="cuda")
    lens, contexts = integers(*(context,) * rows), (context,) * rows
    return lambda: call(q, arena, *weights, table, starts, lens, 192**-0.5, contexts=contexts)


def absorbed(heads: int, rows: int, new: int, context: int) -> Callable[[], object]:
    """The attention of the latent path; its two products by head are not in the time."""
    traits = {"dtype": BF16, "heads": heads, "latent": 512, "rope": 64, "block_tokens": 64}
    call, _ = kernel_of("attention.mla_decode", "gluon", traits)
    (arena,), table = paged(rows, context, 576)
    q_latent, q_rope = random(rows * new, heads, 512), random(rows * new, heads, 64)
    starts = torch.arange(0, rows * new + 1, new, dtype=torch.int32, device="cuda")
    lens = integers(*(context,) * rows)
    told = {"row_starts": starts, "row_tokens_max": new}
    return lambda: call(q_latent, q_rope, arena, table, lens, 192**-0.5, **told)


def gqa(
    op: str, heads: int, kv_heads: int, rows: int, new: int, context: int, kernel: str
) -> Callable[[], object]:
    traits = {"dtype": BF16, "heads": heads, "kv_heads": kv_heads, "head_dim": 128, "block_tokens": 64}
    call, _ = kernel_of(op, kernel, traits)
    arenas, table = paged(rows, context, kv_heads * 128, kv_heads * 128)
    k, v = (arena.view(-1, 64, kv_heads, 128) for arena in arenas)
    q, lens = random(rows * new, heads, 128), integers(*(context,) * rows)
    if op == "attention.gqa_decode":
        return lambda: call(q, k, v, table, lens, 128**-0.5)
    starts = torch.arange(0, rows * new + 1, new, dtype=torch.int32, device="cuda")
    return lambda: call(q, k, v, table, starts, lens, 128**-0.5)


@dataclass(frozen=True, slots=True)
class Case:
    """One question: how to make its call with a kernel, and what the call must move and do."""

    question: str
    name: str
    make: Callable[[str], Callable[[], object]]
    bytes: float
    flop: float
    peer_us: float
    kernels: tuple[str, ...]


def cases(heads_asked: list[int]) -> Iterator[Case]:
    for (heads, rows, new, context), peer in PREFILL_FA3_US.items():
        if heads not in heads_asked:
            continue
        shape = (heads, rows, new, context)
        name = f"h{heads} {rows}x{new} over {context}"
        flop = 640 * heads * pairs(rows, new, context)
        size = 2 * rows * heads * (new * 320 + context * 256)
        yield Case("prefill", name, lambda k, s=shape: prefill(*s, k), size, flop, peer, ("gluon", "cudnn"))
        flop += 2 * rows * context * heads * 256 * 512
        yield Case("raise", name, lambda k, s=shape: raising(*s, k), size, flop, peer, ("gluon", "triton"))
    for new in (16, 64, 128, 256, 512):
        shape = (16, 1, new, 32768)
        make = lambda k, s=shape: absorbed(*s) if k == "absorbed" else raising(*s, k)  # noqa: E731
        yield Case("few", f"h16 1x{new} over 32768", make, 0.0, 0.0, 0.0, ("absorbed", "gluon"))
    for heads, kv_heads in ((32, 8), (32, 4)):
        for rows, new, context in ((1, 8192, 8192), (1, 2048, 32768), (1, 8192, 65536), (4, 512, 65536)):
            flop = 512 * heads * pairs(rows, new, context)
            size = 512 * rows * (context * kv_heads + new * heads)
            name = f"{heads}/{kv_heads} {rows}x{new} over {context}"
            shape = ("attention.gqa_extend", heads, kv_heads, rows, new, context)
            make = lambda k, s=shape: gqa(*s, k)  # noqa: E731
            yield Case("gqa-extend", name, make, size, flop, 0.0, ("gluon", "triton"))
    for (rows, context), peer in DECODE_FA3_US.items():
        size, flop = 512.0 * rows * context * 8, 512.0 * rows * context * 32
        shape = ("attention.gqa_decode", 32, 8, rows, 1, context)
        make = lambda k, s=shape: gqa(*s, k)  # noqa: E731
        yield Case("gqa-decode", f"{rows} x {context}", make, size, flop, peer, ("gluon", "triton"))


def answer(case: Case, kernel: str) -> Answer:
    try:
        us = microseconds(case.make(kernel))
    except Exception:  # the other cases still answer  # noqa: BLE001
        said = traceback.format_exc().strip().splitlines()[-1]
        return Answer(case.question, case.name, kernel, error=said[:200])
    rates = case.flop / us / 1e6, case.bytes / us / 1e3
    return Answer(case.question, case.name, kernel, us, *rates, case.peer_us / us)


def write(file: Path, answers: list[Answer]) -> None:
    """Write what was answered so far, and where."""
    where = {"commit": commit(), "device": str(describe("cuda")), "torch": torch.__version__}
    file.write_text(json.dumps({**where, "answers": [asdict(answer) for answer in answers]}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(QUESTIONS))
    parser.add_argument("--heads", nargs="+", type=int, default=[16, 32, 128])
    parser.add_argument("--kernels", nargs="+", default=["gluon", "triton", "absorbed", "cudnn"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    answers: list[Answer] = []
    for case in cases(asked.heads):
        for kernel in case.kernels:
            if case.question in asked.only and kernel in asked.kernels:
                answers.append(answer(case, kernel))
                print(answers[-1], flush=True)
                torch.cuda.empty_cache()
                if asked.json:
                    write(asked.json, answers)


if __name__ == "__main__":
    main()
