# SPDX-License-Identifier: MIT
"""Twenty thousand worlds over the real control plane and loop: every law holds in every one."""

from __future__ import annotations

import os

import pytest

from tokenspeed.sim import report
from tokenspeed.sim.search import Cut, run_seeds

SEEDS = 20_000
FIRST = 1_000_000  # not those of the fast tests and the mutants


@pytest.mark.slow
def test_twenty_thousand_seeds_pass(capsys: pytest.CaptureFixture[str]) -> None:
    tally = run_seeds(FIRST, SEEDS, Cut(), jobs=os.cpu_count() or 1, progress=lambda done: None)
    with capsys.disabled():
        print()
        print("\n".join(report.summary(tally)))
    assert not tally.failures, tally.failures[0].message
    assert tally.seeds == SEEDS
