# SPDX-License-Identifier: MIT
"""How near is a mixture of experts to what the GPU can do, and how does it stand to its peer there?

    python benchmarks/moe.py [--tokens 1,16,8192] [--shared 0,2] [--kernel NAME] [--json FILE]

bf16, 64 experts of 1408 channels, six a token, width 2048, routed at random; without and with two shared experts
(the peer was measured without, see peers/moe_h200.json). The floor is the larger of bytes of the experts that
were touched / 4.3 TB/s (a measured copy) and operations / 800 TFLOP/s (a measured product). Each row is first
held against float64 (a few of its tokens) and run twice: equal bits are asked for.

`us` is what the peer's numbers are: the median replay of a graph of one call, with 256 MB written in between, so
that nothing is left in the caches. `row us` is one call of a graph of many, each with other tokens and choices, on
copies of the weights in turn: what a layer costs inside a step. `gate us` is `moe.gate` so. Exit code 1 when a
result is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokenspeed import kernels

EXPERTS, TOP_K, WIDTH, FFN = 64, 6, 2048, 1408
BYTES_PER_US, FLOP_PER_US = 4.3e6, 800e6
PEERS = Path(__file__).with_name("peers") / "moe_h200.json"
REPLAYS = 15
FLUSH_BYTES = 256 << 20
COPIES = 2
CALLS_MAX = 16
GATES = 200
"""Gates in turn: more bytes than the cache holds."""
ROUTING = {"experts": EXPERTS, "top_k": TOP_K, "scoring": "sigmoid", "group_score": "top2_sum"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What was measured for one number of tokens."""

    tokens: int
    shared: int
    experts_touched: float
    floor_us: float
    us: float
    row_us: float
    gate_us: float
    peer_us: float | None
    error: float
    right: bool


@dataclass(frozen=True, slots=True)
class Work:
    """Arguments of the calls in a row: tokens, choices and weights of each."""

    x: Tensor
    ids: Tensor
    weights: Tensor

    @classmethod
    def of(cls, tokens: int) -> Work:
        calls = max(COPIES, min(CALLS_MAX, 512 // tokens))
        chosen = torch.rand(calls, tokens, EXPERTS, device="cuda").argsort(-1)[..., :TOP_K]
        return cls(
            torch.randn(calls, tokens, WIDTH, device="cuda").bfloat16(),
            chosen.to(torch.int32).contiguous(),
            torch.rand(calls, tokens, TOP_K, device="cuda").softmax(-1),
        )


def loaded(shared: int) -> tuple[Tensor, ...]:
    """Random weights of one layer, as a checkpoint has them."""

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(std=shape[-1] ** -0.5)

    routed = drawn(EXPERTS, 2 * FFN, WIDTH), drawn(EXPERTS, WIDTH, FFN)
    return (*routed, drawn(2 * shared * FFN, WIDTH), drawn(WIDTH, shared * FFN)) if shared else routed


def error_of(work: Work, weights: tuple[Tensor, ...], got: Tensor) -> float:
    """The largest |error| over its tolerance of a few tokens, against float64: at most 1 is right."""
    worst = 0.0
    for token in {0, work.x.shape[1] // 2, work.x.shape[1] - 1}:
        x = work.x[0, token].double()
        parts = [
            (work.weights[0, token, k], *(w[work.ids[0, token, k]] for w in weights[:2]))
            for k in range(TOP_K)
        ]
        parts += [(1.0, *weights[2:])] if len(weights) > 2 else []
        want = torch.zeros_like(x)
        for share, w13, w2 in parts:
            gate, up = (w13.double() @ x).chunk(2)
            want += share * (w2.double() @ (torch.nn.functional.silu(gate) * up))
        ratio = (got[token].double() - want).abs() / (8e-3 + 1.6e-2 * want.abs())
        worst = max(worst, float(ratio.nan_to_num(torch.inf).max()))
    return worst


def replay_us(calls: list[Callable[[], object]], flush: Tensor) -> float:
    """Median time of a graph of these calls, cold, for one of them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    for turn in range(REPLAYS + 2):
        flush.fill_(turn)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def gate_us(tokens: int, flush: Tensor) -> float:
    """One gate of a graph of many, each with its own weights."""
    bound = kernels.bind("moe.gate", kernels.describe("cuda"), x_dtype=torch.bfloat16, width=WIDTH, **ROUTING)
    x = torch.randn(tokens, WIDTH, device="cuda").bfloat16()
    bias = torch.rand(EXPERTS, device="cuda") * 0.1
    gates = [
        bound.prepare(torch.randn(EXPERTS, WIDTH, device="cuda").bfloat16().float()) for _ in range(GATES)
    ]
    keywords = {**ROUTING, "groups": 1, "groups_top": 1, "normalise": True, "scale": 2.446}
    del keywords["experts"]
    return replay_us([lambda w=w: bound(x, w, bias, **keywords) for w in gates], flush)


def answer(tokens: int, bound: kernels.Bound, copies: list[tuple[Tensor, ...]], flush: Tensor) -> Answer:
    work, shared = Work.of(tokens), len(copies[0][2]) // (2 * FFN) if len(copies[0]) > 2 else 0
    prepared = [bound.prepare(*weights) for weights in copies]
    out = torch.full((tokens, WIDTH), torch.nan, dtype=torch.bfloat16, device="cuda")

    def call(turn: int) -> Callable[[], object]:
        arguments = work.x[turn], work.ids[turn], work.weights[turn], prepared[turn % len(prepared)]
        return lambda: bound(*arguments, out=out)

    call(0)()
    first, error = out.clone(), error_of(work, copies[0], out)
    call(0)()
    same = torch.equal(first, out)
    calls = [call(turn) for turn in range(len(work.x))]
    touched = statistics.fmean(len(ids.unique()) for ids in work.ids)
    moved = 3 * (touched + shared) * WIDTH * FFN * 2
    flop = 6 * tokens * (TOP_K + shared) * WIDTH * FFN
    peers = {row[0]: row[-1] for row in json.loads(PEERS.read_text())["rows"]}
    return Answer(
        tokens, shared, touched, max(moved / BYTES_PER_US, flop / FLOP_PER_US), replay_us(calls[:1], flush),
        replay_us(calls, flush), gate_us(tokens, flush), None if shared else peers.get(tokens), error,
        error <= 1 and same,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", default="1,2,4,8,16,32,64,256,1024,8192")
    parser.add_argument("--shared", default="0,2", help="numbers of shared experts")
    parser.add_argument("--kernel", help="name of a kernel instead of the one that is chosen")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = kernels.describe("cuda")
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    traits = {"dtype": torch.bfloat16, "experts": EXPERTS, "top_k": TOP_K, "width": WIDTH, "ffn": FFN}
    answers: list[Answer] = []
    heads = ("tokens", "shared", "touched", "floor", "us", "row us", "share", "gate", "peer", "x peer")
    print("{:>7} {:>6} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>8} {:>7}".format(*heads))
    for shared in map(int, args.shared.split(",")):
        with kernels.overriding(*([f"moe.experts={args.kernel}"] if args.kernel else [])):
            bound = kernels.bind("moe.experts", device, shared=shared, **traits)
        copies = [loaded(shared) for _ in range(COPIES)]
        for tokens in map(int, args.tokens.split(",")):
            one = answer(tokens, bound, copies, flush)
            answers.append(one)
            peer = f"{one.peer_us:8.1f} {one.peer_us / one.us:7.2f}" if one.peer_us else ""
            mark = "" if one.right else f"  WRONG: error {one.error:.2g} of its tolerance, or not repeated"
            print(
                f"{tokens:7} {shared:6} {one.experts_touched:8.1f} {one.floor_us:8.1f} {one.us:8.1f} "
                f"{one.row_us:8.1f} {one.floor_us / one.row_us:6.0%} {one.gate_us:6.1f} {peer}{mark}",
                flush=True,
            )
        del copies
    if args.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        said = {
            "benchmark": "moe",
            "command": " ".join(["python", *sys.argv]),
            "commit": commit.stdout.strip(),
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "rows": [asdict(one) for one in answers],
        }
        args.json.write_text(json.dumps(said, indent=1) + "\n")
    return 0 if all(one.right for one in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
