# SPDX-License-Identifier: MIT
"""`tokenspeed bench NAME ...`: run one benchmark; each is a module of `tokenspeed.bench` with
`main(argv)`."""

from __future__ import annotations

import importlib
from typing import Final

from tokenspeed.base.errors import SetupError

BENCHMARKS: Final = {
    "all": (
        "tokenspeed.bench.suite",
        "what this machine can run, in a few minutes, into a folder of results",
    ),
    "scheduler": ("tokenspeed.bench.scheduler", "plan and commit, microseconds by load and context"),
    "agentic": (
        "tokenspeed.bench.agentic",
        "a server under coding agents, over HTTP",
    ),
    "report": ("tokenspeed.bench.report", "results of agentic as tables, plots and one page"),
    "engine": ("tokenspeed.bench.engine", "decode steps and prefill of a model, without HTTP"),
    "frontend": ("tokenspeed.bench.frontend", "all that is not the model: CPU time by process and context"),
    "kernels": ("tokenspeed.bench.kernels", "each kernel against its bound and the reference"),
}


def main(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: tokenspeed bench NAME [ARGUMENTS]\n\nbenchmarks:")
        for name, (_, summary) in BENCHMARKS.items():
            print(f"  {name:<9}  {summary}")
        return 0
    if argv[0] not in BENCHMARKS:
        raise SetupError(f"no benchmark {argv[0]!r}; there are {', '.join(BENCHMARKS)}")
    return importlib.import_module(BENCHMARKS[argv[0]][0]).main(argv[1:])
