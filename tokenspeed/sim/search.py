# SPDX-License-Identifier: MIT
"""Running many seeds, and making a failing one small.

In: a range of seeds. Out: a `Tally`; or the least `Cut` of a seed's world that still breaks the same law.
Seeds are independent, so they are spread over processes in spans; a failure ends the search after the spans
in progress.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Final

from tokenspeed.base.log import get_logger
from tokenspeed.sim.report import Tally
from tokenspeed.sim.workload import draw
from tokenspeed.sim.world import Run, run

SPAN_SEEDS: Final = 100


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left out of a world."""

    without: frozenset[str] = frozenset()
    sessions: frozenset[int] | None = None  # None keeps all

    def options(self) -> str:
        """As command-line options."""
        without = f" --without {','.join(sorted(self.without))}" if self.without else ""
        sessions = "" if self.sessions is None else f" --sessions {','.join(map(str, sorted(self.sessions)))}"
        return without + sessions


def quiet() -> None:
    """Silence the engine in this process: refusals and failed rows are part of a world, not news."""
    get_logger("engine").setLevel("CRITICAL")


def run_seed(seed: int, cut: Cut, *, aloud: bool = False) -> Run:
    """Run one world."""
    return run(draw(seed, without=cut.without, sessions=cut.sessions), aloud=aloud)


def run_span(first: int, count: int, cut: Cut) -> Tally:
    """Run consecutive seeds, up to the first that fails."""
    tally = Tally()
    for seed in range(first, first + count):
        tally.add(run_seed(seed, cut))
        if tally.failures:
            break
    return tally


def run_seeds(first: int, count: int, cut: Cut, *, jobs: int, progress: Callable[[int], None]) -> Tally:
    """Run consecutive seeds in `jobs` processes; `progress` is told how many are done."""
    spans = [(at, min(SPAN_SEEDS, first + count - at)) for at in range(first, first + count, SPAN_SEEDS)]
    total = Tally()
    if jobs == 1:
        for at, length in spans:
            total.merge(run_span(at, length, cut))
            progress(total.seeds)
            if total.failures:
                break
        return total
    with ProcessPoolExecutor(jobs, initializer=quiet) as pool:
        left = iter(spans)
        pending: set[Future[Tally]] = set()
        while True:
            while len(pending) < 2 * jobs and not total.failures and (span := next(left, None)) is not None:
                pending.add(pool.submit(run_span, *span, cut))
            if not pending:
                return total
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                total.merge(future.result())
            progress(total.seeds)


def shrink(failed: Run, cut: Cut) -> tuple[Run, Cut]:
    """Leave out features and sessions one at a time while the same law still breaks."""
    sessions = (
        range(len(draw(failed.seed, without=cut.without).sessions)) if cut.sessions is None else cut.sessions
    )
    cut = replace(cut, sessions=frozenset(sessions))
    changed = True
    while changed:
        changed = False
        smaller = [
            replace(cut, sessions=(cut.sessions or frozenset()) - {index})
            for index in sorted(cut.sessions or ())
        ]
        smaller += [replace(cut, without=cut.without | {name}) for name in sorted(failed.features)]
        for candidate in smaller:
            again = run_seed(failed.seed, candidate)
            if again.law == failed.law:
                failed, cut, changed = again, candidate, True
                break
    return failed, cut
