# SPDX-License-Identifier: MIT
"""Whole worlds over the real loop and control plane: hundreds pass, runs repeat, wrong code fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokenspeed.sim import executor, model
from tokenspeed.sim.search import Cut, run_seed, run_seeds, run_span, shrink
from tokenspeed.sim.workload import draw
from tokenspeed.sim.world import run


def test_seeds_pass_and_reach_what_they_are_for() -> None:
    tally = run_span(0, 300, Cut())
    assert not tally.failures, tally.failures[0].message
    for name in (
        "steps launched over another",
        "steps of decode and prefill",
        "chunks that end inside a prompt",
        "token taken from the device",
        "prefix hits known to be complete",
        "evictions",
        "retractions",
        "blocks deduplicated",
        "results late",
        "strange results",
        "rows not finite",
        "cancelled while waiting",
        "cancelled while running",
        "cancelled while in flight",
        "ended by stop",
        "ended by length",
        "refused, queue_full",
        "refused, too_long",
        "refused, exceeds_pool",
    ):
        assert tally.seeds_reaching[name] >= 3, name


def test_equal_seeds_run_equally() -> None:
    for seed in range(10):
        one, other = run(draw(seed)), run(draw(seed))
        assert one == other


def test_spread_over_processes_is_one_process() -> None:
    def ignore(done: int) -> None:
        del done

    one = run_seeds(0, 110, Cut(), jobs=1, progress=ignore)
    two = run_seeds(0, 110, Cut(), jobs=2, progress=ignore)
    assert one == two


def test_executor_that_reads_wrongly_fails_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(fingerprint: int, seed: int) -> int:
        return model.sample(fingerprint, seed) ^ 1

    wrong = SimpleNamespace(root=model.root, fold=model.fold, sample=sample)
    monkeypatch.setattr(executor, "model", wrong)
    assert run_seed(0, Cut()).law == "tokens"


def test_code_that_raises_fails_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def retire(self: executor.SimExecutor, flight: executor.Flight) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(executor.SimExecutor, "retire", retire)
    failed = run_seed(0, Cut())
    assert failed.law == "crash"
    assert "planted" in (failed.message or "")


def test_shrinking_keeps_the_law_and_leaves_things_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor.Row, "end", property(lambda row: row.start + 1))
    failed = run_seed(3, Cut())
    least, cut = shrink(failed, Cut())
    assert least.law == failed.law
    assert cut.sessions is not None
    assert len(cut.sessions) == 1
    assert run_seed(3, cut).law == failed.law
