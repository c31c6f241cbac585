# SPDX-License-Identifier: MIT
"""The journal on disk: whole while it fits, in two bounded files where it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenspeed.audit.journal import read
from tokenspeed.base.errors import SetupError
from tokenspeed.control import Scheduler, SchedulerOptions
from tokenspeed.engine.journal import TURNS_PER_WRITE, JournalFile
from tokenspeed.sim.replay import read_journal, replay


def scheduler() -> Scheduler:
    return Scheduler(
        SchedulerOptions(
            blocks_total=64,
            block_tokens=4,
            slots_max=4,
            tokens_per_step_max=16,
            rows_per_step_max=4,
            prefill_tokens_max=16,
            waiting_max=8,
            context_tokens_max=128,
            seed=5,
            journal=True,
        )
    )


def live(scheduler: Scheduler, journal: JournalFile, requests: int) -> None:
    for request_id in range(requests):
        prompt = np.arange(20, dtype=np.int32)
        scheduler.submit(request_id, prompt, tokens_max=5, stop_ids=np.empty(0, np.int32), now_us=request_id)
        while (plan := scheduler.plan(request_id)) is not None:
            scheduler.commit(plan.step, np.ones(plan.samples, np.int32), request_id, 7)
            journal.keep()


def test_a_journal_that_fits_is_one_file_and_replays(tmp_path: Path) -> None:
    path = tmp_path / "events"
    control = scheduler()
    with JournalFile(path, control, bytes_max=1 << 20) as journal:
        live(control, journal, 50)
    assert [each.name for each in tmp_path.iterdir()] == ["events"]
    found = replay(read_journal(path))
    assert found.difference is None
    assert found.steps == control.stats().steps > TURNS_PER_WRITE


def test_a_journal_that_does_not_fit_keeps_its_end_in_two_files(tmp_path: Path) -> None:
    path = tmp_path / "events"
    control = scheduler()
    with JournalFile(path, control, bytes_max=1 << 16) as journal:
        live(control, journal, 600)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["events", "events.1"]
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < (1 << 16) + 10_000
    log = read_journal(path)
    assert log.dropped > 0
    last = next(event for event in reversed(log.events) if event.kind == "plan")
    assert last.fields["step"] == control.stats().steps
    steps = [event.fields["step"] for event in log.events if event.kind == "plan"]
    assert steps == list(range(steps[0], steps[-1] + 1))
    with pytest.raises(SetupError, match="lacks its first"):
        replay(log)
    for each in tmp_path.iterdir():
        assert read(each.read_bytes()).lost > 0


def test_a_new_run_forgets_the_file_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "events"
    (tmp_path / "events.1").write_bytes(b"of another run")
    control = scheduler()
    with JournalFile(path, control, bytes_max=1 << 20) as journal:
        live(control, journal, 1)
    assert [each.name for each in tmp_path.iterdir()] == ["events"]


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        JournalFile(tmp_path / "nowhere" / "events", scheduler(), bytes_max=1 << 20)
