# SPDX-License-Identifier: MIT
"""Cases of the trace simulator: which sessions, floor, pool and policies, and what came of each.

In: a `Case` and the sessions of a trace. Out: a `Result`: the case as it was resolved, its measures against one
floor, its bounds. Cases are independent and run in processes; a case that differs from another in its floor
alone, with policies that ignore floors, is played once. Knows files only to read the trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from tokenspeed.base.errors import SetupError
from tokenspeed.control import SchedulerOptions
from tokenspeed.control.log import header
from tokenspeed.sim.agents import Agents, Record, Setting
from tokenspeed.sim.bounds import Bounds, bounds
from tokenspeed.sim.device import DEVICES, NOISES, DeviceModel
from tokenspeed.sim.measures import Measures, measure
from tokenspeed.sim.sessions import Session, read_sessions, working_set_tokens

SWITCHES: Final = ("floor", "session_admission", "fair_share", "retention", "tiers")
POLICIES: Final[dict[str, frozenset[str]]] = {
    "off": frozenset(),
    "on": frozenset(SWITCHES) - {"tiers"},
    "tiers": frozenset(SWITCHES),
}
"""Policies by name: off is FCFS over an LRU. Elsewhere, switches are named one by one."""
BLOCK_TOKENS: Final = 64
ROWS_MAX: Final = 64
PREFILL_TOKENS_MAX: Final = 8192
CONTEXT_TOKENS_MAX: Final = 320_000
WAITING_MAX: Final = 1024
ENDLESS: Final = 40.0
"""A pool of so many working sets evicts nothing within an hour."""


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of a study. `pool` and `host` are parts of the working set of `sessions` live sessions."""

    sessions: int
    floor_tps: int
    pool: float
    policies: str = "on"
    host: float = 0.0
    seed: int = 0
    noise: str = "exact"
    model: str = "moonlight"
    device: str = "h200"
    mesh: str = "tp1"
    minutes: float = 20.0
    warm_up_minutes: float = 5.0
    gap_scale: float = 1.0
    final: bool = False
    closes: bool = False
    overlap: bool = True
    tenants: tuple[int, ...] = ()  # of the lanes; empty: all of one

    @property
    def switches(self) -> frozenset[str]:
        """Its policies by their switches."""
        named = POLICIES.get(self.policies)
        if named is not None:
            return named
        switches = frozenset(self.policies.split("+"))
        if unknown := switches - set(SWITCHES):
            known = ", ".join((*POLICIES, *SWITCHES))
            raise SetupError(
                f"--policies {self.policies}: no {', '.join(sorted(unknown))}; there are {known}"
            )
        return switches


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case."""

    case: Case
    working_set_tokens: int
    pool_tokens: int
    host_tokens: int
    measures: Measures
    bounds: Bounds
    steps: int
    cpu_s: float  # of the simulation
    speed: float  # simulated time over that

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def device_of(case: Case) -> DeviceModel:
    """The device model of a case."""
    try:
        return DEVICES[case.model, case.device].on_mesh(case.mesh)
    except KeyError:
        known = ", ".join(f"{model} on {device}" for model, device in DEVICES)
        raise SetupError(f"no step times of {case.model} on {case.device}; there are {known}") from None


def options_of(case: Case, sessions: Sequence[Session], *, journal: bool = False) -> SchedulerOptions:
    """The scheduler of a case."""
    held = working_set_tokens(sessions, case.sessions)
    switches = case.switches
    return SchedulerOptions(
        blocks_total=max(1, round(held * case.pool) // BLOCK_TOKENS),
        block_tokens=BLOCK_TOKENS,
        slots_max=ROWS_MAX,
        tokens_per_step_max=PREFILL_TOKENS_MAX + ROWS_MAX,
        rows_per_step_max=ROWS_MAX,
        prefill_tokens_max=PREFILL_TOKENS_MAX,
        waiting_max=WAITING_MAX,
        context_tokens_max=CONTEXT_TOKENS_MAX,
        overlap=case.overlap,
        seed=case.seed,
        journal=journal,
        floor_mtps=case.floor_tps * 1000 if "floor" in switches else 0,
        cost=device_of(case).prices,
        cost_exact=case.noise == "exact" and device_of(case).expert_us == 0,
        host_blocks=round(held * case.host) // BLOCK_TOKENS if "tiers" in switches else 0,
        floor="floor" in switches,
        session_admission="session_admission" in switches,
        fair_share="fair_share" in switches,
        retention="retention" in switches,
        tiers="tiers" in switches,
    )


def play(case: Case, sessions: Sequence[Session], journal: Path | None = None) -> tuple[Record, float]:
    """Live through a case; its record, and the CPU seconds that took. Its journal goes to a file, if named."""
    setting = Setting(
        seed=case.seed,
        lanes=case.sessions,
        duration_us=round((case.warm_up_minutes + case.minutes) * 60e6),
        warm_up_us=round(case.warm_up_minutes * 60e6),
        noise=NOISES[case.noise],
        final=case.final,
        closes=case.closes,
        tenants=case.tenants,
    )
    begin = time.process_time()
    agents = Agents(
        sessions, options_of(case, sessions, journal=journal is not None), device_of(case), setting
    )
    record = agents.play()
    cpu_s = time.process_time() - begin
    if journal is not None:
        part, before = agents.scheduler.take_journal()
        journal.write_bytes(header(case.seed, before) + part)
    return record, cpu_s


def run(
    cases: Sequence[Case],
    trace: Path,
    *,
    jobs: int,
    progress: Callable[[Result], None],
    journal: Path | None = None,
) -> list[Result]:
    """Run cases in `jobs` processes; `progress` hears of each as it comes. One that is played alone may leave its
    journal."""
    groups: dict[Case, list[Case]] = {}
    for case in cases:
        groups.setdefault(_played(case), []).append(case)
    if journal is not None and len(groups) > 1:
        raise SetupError(f"--event-log {journal}: a journal is of one run, these are {len(groups)}")
    results: list[Result] = []
    with ExitStack() as stack:
        mapped = map if jobs == 1 else stack.enter_context(ProcessPoolExecutor(jobs)).map
        for found in mapped(partial(_run_group, trace, journal), groups.values()):
            for result in found:
                progress(result)
                results.append(result)
    return results


def _played(case: Case) -> Case:
    """The case as far as the scheduler knows it: the floor is the judge's where no policy heeds it."""
    return case if "floor" in case.switches else replace(case, floor_tps=0)


def _run_group(trace: Path, journal: Path | None, cases: Sequence[Case]) -> list[Result]:
    """Cases that are played alike, judged by their floors."""
    case = cases[0]
    sessions = _sessions(trace, case.gap_scale)
    options = options_of(case, sessions)
    record, cpu_s = play(case, sessions, journal)
    pool_tokens = options.blocks_total * BLOCK_TOKENS
    bounded = bounds(record, sessions, pool_tokens)
    return [
        Result(
            case=each,
            working_set_tokens=working_set_tokens(sessions, each.sessions),
            pool_tokens=pool_tokens,
            host_tokens=options.host_blocks * BLOCK_TOKENS,
            measures=measure(record, device_of(each), bounded.endless_tokens, each.floor_tps),
            bounds=bounded,
            steps=record.steps,
            cpu_s=cpu_s,
            speed=record.end_us / 1e6 / cpu_s,
        )
        for each in cases
    ]


@lru_cache(maxsize=2)
def _sessions(trace: Path, gap_scale: float) -> list[Session]:
    return read_sessions(trace, gap_scale=gap_scale)


def table(results: Sequence[Result]) -> Iterator[str]:
    """Results as lines of text."""
    yield (
        f"{'policies':<10}{'N':>4}{'floor':>6}{'pool':>6}{'host':>6}{'seed':>5} {'noise':<6}{'turns/h':>8}"
        f"{'violating':>11}{'p10 tps':>8}{'TTFT p95':>9}{'door p95':>9}{'max wait':>9}{'hit':>7}{'bound':>7}"
        f"{'Belady':>7}{'again':>7}{'Jain':>6}{'speed':>7}"
    )
    for result in results:
        case, m, b = result.case, result.measures, result.bounds
        prompt = max(1, b.prompt_tokens)
        yield (
            f"{case.policies:<10}{case.sessions:>4}{case.floor_tps:>6}{case.pool:>6.2f}{case.host:>6.2f}"
            f"{case.seed:>5} {case.noise:<6}{m.turns_per_hour:>8.0f}{m.windows_violating:>5}/{m.windows:<5}"
            f"{m.tps_p10:>8.1f}{m.ttft_p95_s:>8.2f}s{m.door_p95_s:>8.1f}s{m.wait_max_s:>8.1f}s"
            f"{m.hit_share:>7.1%}{b.endless_tokens / prompt:>7.1%}{b.belady_tokens / prompt:>7.1%}"
            f"{m.recompute_share:>7.1%}{m.jain:>6.2f}{result.speed:>6.0f}x"
        )
