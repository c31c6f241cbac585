# SPDX-License-Identifier: MIT
"""How near are the CPU kernels to what this machine can do? GB/s and GFLOP/s of each, against ceilings of the
same minute.

    python benchmarks/cpu_kernels.py [--only SUBSTRING] [--rounds 15] [--threads N] [--json FILE]

Each case states the bytes it must read and the operations it must do. Kernel and ceilings take turns and the
best time of each counts, because the machine may be shared; with one thread, its processor time is taken
instead of the clock, which leaves out the time that other processes ran. Ceilings: a streaming read of a
large buffer, 8 MiB at a time, by the same threads; bf16 matmul of torch (oneDNN) on 256 x 1024 x 1024 with as
many. `share` is the larger of the two shares reached. Inputs rotate through copies larger than the last-level
cache, so weights come from memory as they do in a model.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tokenspeed.kernels.cpu import _cpu, attention, linear, moe, pointwise, rope
from tokenspeed.kernels.cpu.buffers import packed_buffer
from tokenspeed.kernels.cpu.threads import isa, set_threads

BF16 = torch.bfloat16
CACHE_BYTES = 96 << 20
STREAM_BYTES = 256 << 20
STREAM_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One question: `calls` are equal calls on different memory; bytes and flop are of one call."""

    name: str
    bytes: float
    flop: float
    calls: list[Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Answer:
    """Best times and what they mean."""

    name: str
    us: float
    gb_s: float
    gflop_s: float
    stream_gb_s: float
    matmul_gflop_s: float
    share: float


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(BF16)


def _arena(*shape: int) -> torch.Tensor:
    """An arena as the executor makes it: on huge pages, zeroed first."""
    arena = packed_buffer(2 * math.prod(shape)).view(BF16).view(shape)
    return arena.copy_(_random(*shape))


def _copies(bytes_each: float, least: int = 1) -> int:
    return max(least, min(64, int(CACHE_BYTES // max(bytes_each, 1)) + 1))


def dense_case(tokens: int, inputs: int, outputs: int, format: str = "native") -> Case:
    size = inputs * outputs * (2 if format == "native" else 1)
    weights = [linear.dense_prepare(_random(outputs, inputs), format=format) for _ in range(_copies(size))]
    x, out = _random(tokens, inputs), torch.empty(tokens, outputs, dtype=BF16)
    calls = [lambda w=w: linear.dense(x, w, out=out) for w in weights]
    return Case(f"dense {format} T={tokens} {inputs}->{outputs}", size, 2 * tokens * inputs * outputs, calls)


def heads_case(rows: int, heads: int, a: int, b: int) -> Case:
    size = heads * a * b * 2
    weights = [linear.heads_prepare(_random(heads, a, b)) for _ in range(_copies(size))]
    x = _random(rows, heads, a)
    return Case(
        f"heads R={rows} {heads}x{a}->{b}",
        size,
        rows * size,
        [lambda w=w: linear.heads(x, w) for w in weights],
    )


def _table(rows: int, context: int, block_tokens: int) -> tuple[torch.Tensor, int]:
    blocks = -(-context // block_tokens)
    return torch.randperm(rows * blocks).to(torch.int32).view(rows, blocks), rows * blocks


def gqa_case(rows: int, context: int, new: int, heads: int = 16, kv_heads: int = 8, dim: int = 128) -> Case:
    table, blocks = _table(rows, context, 64)
    size = rows * context * kv_heads * dim * 4
    arenas = [
        [_arena(blocks, 64, kv_heads, dim) for _ in "kv"] for _ in range(_copies(size) if new == 1 else 1)
    ]
    q = _random(rows * new, heads, dim)
    lens = torch.full((rows,), context, dtype=torch.int32)
    starts = (torch.arange(rows + 1) * new).to(torch.int32)
    pairs = rows * (new * (context - new) + new * (new + 1) / 2)
    flop = 4 * pairs * heads * dim
    if new == 1:
        calls = [lambda k=k, v=v: attention.gqa_decode(q, k, v, table, lens, dim**-0.5) for k, v in arenas]
    else:
        calls = [
            lambda k=k, v=v: attention.gqa_extend(q, k, v, table, starts, lens, dim**-0.5) for k, v in arenas
        ]
    kind = "decode" if new == 1 else f"extend new={new}"
    return Case(f"gqa {kind} R={rows} ctx={context} {heads}/{kv_heads}x{dim}", size, flop, calls)


def mla_decode_case(rows: int, context: int, heads: int = 16) -> Case:
    table, blocks = _table(rows, context, 64)
    size = rows * context * 576 * 2
    arenas = [_arena(blocks, 64, 576) for _ in range(_copies(size))]
    q_latent, q_rope = _random(rows, heads, 512), _random(rows, heads, 64)
    lens = torch.full((rows,), context, dtype=torch.int32)
    calls = [lambda a=a: attention.mla_decode(q_latent, q_rope, a, table, lens, 192**-0.5) for a in arenas]
    return Case(
        f"mla decode R={rows} ctx={context} H={heads}", size, 2 * rows * context * heads * 1088, calls
    )


def mla_extend_case(context: int, new: int, heads: int = 16) -> Case:
    table, blocks = _table(1, context, 64)
    arena = _arena(blocks, 64, 576)
    w_uk, w_uv = attention.mla_pack(_random(heads, 128, 512), _random(heads, 512, 128))
    q = _random(new, heads, 192)
    lens, starts = torch.tensor([context], dtype=torch.int32), torch.tensor([0, new], dtype=torch.int32)
    pairs = new * (context - new) + new * (new + 1) / 2
    flop = 2 * pairs * heads * 320 + 2 * context * heads * 512 * 256
    call = lambda: attention.mla_extend(q, arena, w_uk, w_uv, table, starts, lens, 192**-0.5)  # noqa: E731
    return Case(f"mla extend new={new} ctx={context} H={heads}", context * 1152, flop, [call])


def experts_case(
    tokens: int, experts: int = 16, top_k: int = 4, width: int = 1024, ffn: int = 512, format: str = "native"
) -> Case:
    each = 3 * width * ffn * (2 if format == "native" else 1)
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)]).to(torch.int32)
    weights = torch.rand(tokens, top_k)
    size = each * len(ids.unique())
    packs = [
        moe.experts_prepare(
            _random(experts, 2 * ffn, width) / 32, _random(experts, width, ffn) / 32, format=format
        )
        for _ in range(_copies(size))
    ]
    x = _random(tokens, width)
    calls = [lambda w=w: moe.experts(x, ids, weights, w) for w in packs]
    return Case(
        f"experts {format} T={tokens} {experts}x{ffn} top{top_k}",
        size,
        6 * tokens * top_k * width * ffn,
        calls,
    )


def small_cases(tokens: int) -> Iterator[Case]:
    x, residual, weight = _random(tokens, 1024), _random(tokens, 1024), _random(1024)
    yield Case(f"rms T={tokens} 1024", tokens * 4096, 0, [lambda: pointwise.rms(x, weight, 1e-6)])
    yield Case(
        f"add_rms T={tokens} 1024", tokens * 8192, 0, [lambda: pointwise.add_rms(x, residual, weight, 1e-6)]
    )
    gate = _random(tokens, 6144)
    yield Case(f"silu_mul T={tokens} 3072", tokens * 18432, 0, [lambda: pointwise.silu_mul(gate)])
    q, k, v = _random(tokens, 32, 128).split((16, 8, 8), 1)
    arenas = [_random(64, 64, 8, 128) for _ in "kv"]
    angles, place = torch.randn(4096, 128), torch.arange(tokens)
    norm = _random(128)
    call = lambda: rope.gqa_write(q, k, v, angles, place, place, *arenas, norm, norm, 1e-6, interleaved=False)  # noqa: E731
    yield Case(f"rope gqa T={tokens} 16/8x128", tokens * 16384, 0, [call])
    logits = torch.randn(tokens, 16)
    route = lambda: moe.route(  # noqa: E731
        logits,
        None,
        top_k=4,
        groups=1,
        groups_top=1,
        scoring="softmax",
        group_score="max",
        normalise=False,
        scale=1.0,
    )
    yield Case(f"route T={tokens} 16 top4", tokens * 64, 0, [route])


def cases() -> Iterator[Callable[[], Case]]:
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 512):
        yield lambda t=tokens: dense_case(t, 1024, 4096)
    for tokens in (1, 8, 512):
        yield lambda t=tokens: dense_case(t, 3072, 1024)
        yield lambda t=tokens: dense_case(t, 1024, 6144)
        yield lambda t=tokens: dense_case(t, 1024, 4096, "int8")
    yield lambda: dense_case(1, 1024, 32000)
    yield lambda: heads_case(1, 16, 128, 512)
    for rows, context in ((1, 128), (1, 2048), (1, 8192), (8, 2048)):
        yield lambda r=rows, c=context: gqa_case(r, c, 1)
        yield lambda r=rows, c=context: mla_decode_case(r, c)
    yield lambda: gqa_case(1, 2048, 1, heads=32, kv_heads=4)
    for context, new in ((512, 512), (4096, 512), (8192, 512), (8192, 2048)):
        yield lambda c=context, n=new: gqa_case(1, c, n)
        yield lambda c=context, n=new: mla_extend_case(c, n)
    for tokens in (1, 8, 64, 512):
        yield lambda t=tokens: experts_case(t)
    yield lambda: experts_case(1, format="int8")


class Ceilings:
    """The two ceilings, measured anew at every turn; and the clock that goes with the number of threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._buffer = torch.zeros(STREAM_BYTES, dtype=torch.uint8)
        self._a, self._b = _random(256, 1024), _random(1024, 1024)

    def timed(self, call: Callable[[], object]) -> float:
        begin = self._clock()
        call()
        return self._clock() - begin

    def stream_s(self) -> float:
        pieces = range(0, STREAM_BYTES, STREAM_PIECE_BYTES)
        base = self._buffer.data_ptr()
        return min(self.timed(lambda at=at: _cpu.stream(base + at, STREAM_PIECE_BYTES)) for at in pieces)

    def matmul_s(self) -> float:
        torch.set_num_threads(self._threads)
        seconds = min(self.timed(lambda: torch.nn.functional.linear(self._a, self._b)) for _ in range(5))
        torch.set_num_threads(1)
        return seconds


def measure(case: Case, ceilings: Ceilings, rounds: int) -> Answer:
    """Let kernel and ceilings take turns; keep the best of each."""
    best = stream = matmul = float("inf")
    for turn in range(rounds):
        stream = min(stream, ceilings.stream_s())
        matmul = min(matmul, ceilings.matmul_s())
        time.sleep(0.002)  # torch's workers spin for a while after a region
        for call in case.calls[:1] * 2 if turn == 0 else case.calls:
            best = min(best, ceilings.timed(call))
    stream_gb_s, matmul_gflop_s = STREAM_PIECE_BYTES / stream / 1e9, 2 * 256 * 1024 * 1024 / matmul / 1e9
    gb_s, gflop_s = case.bytes / best / 1e9, case.flop / best / 1e9
    share = max(gb_s / stream_gb_s, gflop_s / matmul_gflop_s)
    return Answer(case.name, best * 1e6, gb_s, gflop_s, stream_gb_s, matmul_gflop_s, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the raw rows here")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    set_threads(args.threads)
    gc.disable()
    ceilings = Ceilings(args.threads)
    answers: list[Answer] = []
    print(f"{isa()}, {args.threads} threads")
    print(f"{'case':46} {'us':>10} {'GB/s':>7} {'GFLOP/s':>8} {'stream':>7} {'matmul':>7} {'share':>6}")
    every = [lambda c=c: c for t in (1, 512) for c in small_cases(t)] + list(cases())
    for make in every:
        case = make()
        if args.only not in case.name:
            continue
        a = measure(case, ceilings, args.rounds)
        answers.append(a)
        print(
            f"{a.name:46} {a.us:10.1f} {a.gb_s:7.1f} {a.gflop_s:8.0f} {a.stream_gb_s:7.1f} "
            f"{a.matmul_gflop_s:7.0f} {a.share:6.0%}",
            flush=True,
        )
    if args.json:
        args.json.write_text(
            json.dumps({"isa": isa(), "threads": args.threads, "rows": [asdict(a) for a in answers]})
        )


if __name__ == "__main__":
    main()
