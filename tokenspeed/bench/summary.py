# SPDX-License-Identifier: MIT
"""The results of `bench all` as Markdown, for the page that shows them.

In: the folder of its JSON files. Out: a block of text between two markers. Every figure is computed from the
rows; none is stored. Pure but for the reading: the same files make the same block, which a test holds the page
to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import frontend, record
from tokenspeed.bench.provenance import Machine
from tokenspeed.bench.scores import Scores, by_load

WHOLE: Final = "cpu.json"
SMOKE: Final = "cpu-smoke.json"
AGENTIC: Final = "cpu-agentic.json"
FRONTEND: Final = "cpu-frontend.json"
SCHEDULER: Final = "cpu-scheduler.json"
ENGINE: Final = "cpu-engine.json"
BEGIN: Final = "<!-- written by `tokenspeed bench all`: begin -->"
END: Final = "<!-- written by `tokenspeed bench all`: end -->"


@dataclass(frozen=True, slots=True)
class Whole:
    """The run as one."""

    commit: str
    machine: Machine
    started_at: str
    seconds: float
    others_share: float | None
    """Share of the cores that processes of others had meanwhile; None where the system does not say."""
    failed: tuple[str, ...]


def said(whole: Whole) -> str:
    """How long it took, how quiet it was, what failed."""
    share = whole.others_share
    others = "" if share is None else f"; other work had {share:.0%} of the cores meanwhile"
    failed = f"; failed: {', '.join(whole.failed)}" if whole.failed else ""
    return f"{whole.seconds:.0f} s in all{others}{failed}"


def splice(text: str, block: str) -> str:
    """`text` with the block between its markers replaced; `SetupError` where it has no markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SetupError(f"the document has no block between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def render(folder: Path) -> str:
    """The block."""
    whole = msgspec.convert(_read(folder / WHOLE), Whole)
    return "\n".join(
        [
            f"Machine: {whole.machine}. Commit {whole.commit}, {whole.started_at[:10]}, {said(whole)}.",
            "",
            *_smoke(record.read(folder / SMOKE)),
            *_agentic(record.read(folder / AGENTIC)),
            *_frontend(_read(folder / FRONTEND)),
            *_scheduler(_read(folder / SCHEDULER)),
            *_engine(_read(folder / ENGINE)),
        ]
    ).rstrip()


def _smoke(result: record.Result) -> Iterator[str]:
    scores = [each for repeats in by_load(result).values() for each in repeats]
    seconds = sum(level.duration_s for level in result.levels)
    calls = sum(each.calls for each in scores)
    valid = "every check passed" if all(each.valid for each in scores) else "**a check failed**"
    yield f"### C2: does it run at all? ([{SMOKE}](../benchmarks/results/{SMOKE}))"
    yield f"{calls} requests of `h0` at {result.config['scale']:g} of its lengths in {seconds:.1f} s: {valid}."
    yield ""


def _agentic(result: record.Result) -> Iterator[str]:
    yield f"### C1: agents on the bundled model ([{AGENTIC}](../benchmarks/results/{AGENTIC}))"
    repeats = max(level.repeat for level in result.levels) + 1
    yield (
        f"`{result.workload}` at {result.config['scale']:g} of its lengths, answers {result.answers}, "
        f"{result.device}, {repeats} repeat{'s' if repeats > 1 else ''}. The bundled model has 10 M parameters: these "
        "figures follow the engine, not a model's worth."
    )
    yield ""
    yield from _table(
        ("users", "tps/user", "p10", "TTFT first p50 / p95 s", "later p50 / p95 s", "output/s", "prefill/s", "cached/s",
         "TPM", "TPM published", "hit", "checks"),
        [_level(each) for repeats in by_load(result).values() for each in repeats],
    )  # fmt: skip


def _level(scores: Scores) -> tuple[str, ...]:
    first, later = scores.ttft_first_s, scores.ttft_later_s
    return (
        f"{scores.load:g}",
        f"{scores.user_tps:.1f}",
        f"{scores.user_tps_p10:.1f}",
        f"{first[0]:.2f} / {first[1]:.2f}",
        f"{later[0]:.2f} / {later[1]:.2f}",
        f"{scores.output_tps:.1f}",
        "-" if scores.prefill_tps is None else f"{scores.prefill_tps:.0f}",
        "-" if scores.cached_tps is None else f"{scores.cached_tps:.0f}",
        f"{scores.tpm:,.0f}",
        f"{scores.tpm_published:,.0f}",
        "-" if scores.hit_rate is None else f"{scores.hit_rate:.1%}",
        "passed" if scores.valid else "; ".join(check.name for check in scores.checks if not check.passed),
    )


def _frontend(document: dict[str, Any]) -> Iterator[str]:
    rows = msgspec.convert(document["rows"], list[frontend.Row])
    config = document["config"]
    yield f"### C0: what does all that is not the model cost? ([{FRONTEND}](../benchmarks/results/{FRONTEND}))"
    yield (
        f"{config['sessions']} agents at once over HTTP, each {config['turns']} later turns of "
        f"{config['turn_tokens']} tokens, answers of {config['answer_tokens']}, and a device that computes nothing. "
        "CPU time of each process; a new token is one that no earlier request of its session held."
    )
    yield ""
    yield from _table(frontend.COLUMNS, [frontend.cells(row) for row in rows])
    yield from (f"- {line}" for line in frontend.growth_lines(rows))
    yield ""


def _scheduler(document: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in document["rows"] if row["name"] == "decode"]
    contexts = sorted({row["context_tokens"] for row in rows})
    cells = {(row["overlap"], row["running"], row["context_tokens"]): row for row in rows}
    yield f"### What does the control plane cost? ([{SCHEDULER}](../benchmarks/results/{SCHEDULER}))"
    yield "Plan and commit through the Python binding, every array read, microseconds per step: median (p99)."
    yield ""
    lines = [
        (
            str(running),
            "on" if overlap else "off",
            *(f"{cell['median_us']:.1f} ({cell['p99_us']:.0f})" for cell in row),
            *(["-"] if row[-1]["bar_us"] is None else [f"{row[-1]['bar_us']:.0f}"]),
        )
        for overlap, running in sorted({key[:2] for key in cells})
        if (row := [cells[overlap, running, context] for context in contexts])
    ]
    yield from _table(
        ("running", "overlap", *(f"{context >> 10}k context" for context in contexts), "bar"), lines
    )
    others = [row for row in document["rows"] if row["name"] != "decode"]
    said = (
        f"{row['name']}{', overlap' if row['overlap'] else ''} {row['median_us']:.1f} us" for row in others
    )
    yield f"{'; '.join(said)}."
    yield ""


def _engine(document: dict[str, Any]) -> Iterator[str]:
    begin, end = document["config"]["steps"]
    yield f"### How fast is the engine without HTTP? ([{ENGINE}](../benchmarks/results/{ENGINE}))"
    yield (
        f"The bundled model on {document['device']}. Decode: milliseconds a step (tokens per second of all requests) "
        f"from token {begin} to {end}. Prefill: one prompt, nothing cached."
    )
    yield ""
    rows = {(row["batch"], row["context_tokens"]): row for row in document["decode"]}
    contexts = sorted({context for _, context in rows})
    yield from _table(
        ("batch", *(f"at {context:,}" for context in contexts)),
        [
            (str(batch), *(_step(rows.get((batch, context))) for context in contexts))
            for batch in sorted({batch for batch, _ in rows})
        ],
    )
    yield from _table(
        ("prompt", "tokens/s"),
        [(f"{row['context_tokens']:,}", f"{row['tokens_per_s']:,.0f}") for row in document["prefill"]],
    )


def _step(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['step_us'] / 1000:.2f} ({row['tokens_per_s']:.0f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SetupError(f"{path}: no result of `bench all`: {error}") from error
