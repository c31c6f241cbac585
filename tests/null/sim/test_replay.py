# SPDX-License-Identifier: MIT
"""A journal, lived through again, gives the recorded decisions; where it does not, the replay says where."""

from __future__ import annotations

from dataclasses import replace as with_fields
from pathlib import Path

import numpy as np
import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.control import Event, EventLog, IdleClass, Scheduler, SchedulerOptions, read_log
from tokenspeed.control.log import header
from tokenspeed.sim.replay import INPUTS, read_journal, replay, shrink


def options(**changes: object) -> SchedulerOptions:
    values: dict[str, object] = {
        "blocks_total": 24,
        "block_tokens": 4,
        "slots_max": 4,
        "tokens_per_step_max": 24,
        "rows_per_step_max": 4,
        "prefill_tokens_max": 16,
        "waiting_max": 8,
        "context_tokens_max": 64,
        "overlap": True,
        "hash_key": bytes(range(16)),
        "cost": (1.5, 0.1, 1e-3, 0.3, 1e-7),
        "seed": 3,
        "journal": True,
    }
    return SchedulerOptions(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def lived(options: SchedulerOptions, seed: int, calls: int = 400) -> Scheduler:
    """A scheduler that was called at random: turns of two tenants that share prompts, cancels, faults, late results."""
    random = np.random.default_rng(seed)
    scheduler = Scheduler(options)
    flights: list[tuple[int, int]] = []
    histories = [np.array([7, 8, 9, 10, 11], np.int32)]
    for now_us in range(1, calls):
        match int(random.integers(0, 12)):
            case 0 | 1 | 2:
                history = histories[int(random.integers(len(histories)))]
                more = random.integers(0, 50, int(random.integers(0, 9))).astype(np.int32)
                prompt = np.concatenate([history, more])[:40]
                histories.append(prompt)
                scheduler.submit(
                    int(random.integers(0, 60)),
                    prompt,
                    tokens_max=int(random.integers(1, 20)),
                    tokens_min=int(random.integers(0, 4)),
                    stop_ids=np.array([3, 4], np.int32),
                    salt=b"a" if random.random() < 0.3 else b"",
                    priority=int(random.integers(-2, 3)),
                    now_us=now_us,
                    session=int(random.integers(0, 5)),
                    tenant=int(random.integers(0, 3)),
                )
            case 3:
                scheduler.cancel(int(random.integers(0, 60)))
            case 4:
                scheduler.idle_session(int(random.integers(1, 5)), IdleClass.TOOL, gap_key=9, now_us=now_us)
            case 5:
                if random.random() < 0.2:
                    scheduler.flush_prefix()
                scheduler.commit(10**6, np.zeros(1, np.int32), now_us)
            case _:
                plan = scheduler.plan(now_us)
                if plan is not None:
                    flights.append((plan.step, plan.samples))
                if flights and (plan is None or random.random() < 0.6):
                    step, samples = flights.pop(0)
                    tokens = random.integers(0, 30, samples).astype(np.int32)
                    tokens[random.random(samples) < 0.03] = -1
                    scheduler.commit(step, tokens, now_us, 10)
    return scheduler


def journal(scheduler: Scheduler) -> EventLog:
    part, before = scheduler.take_journal()
    return read_log(header(3, before) + part)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_random_life_replays_bit_for_bit(seed: int, prefix_cache: bool) -> None:
    log = journal(lived(options(prefix_cache=prefix_cache), seed))
    kinds = {event.kind for event in log.events}
    assert {"submit", "prompt", "plan", "rows", "commit", "results", "cancel", "finish", "late"} <= kinds
    found = replay(log)
    assert found.difference is None
    assert found.steps == sum(event.kind == "plan" for event in log.events) > 50


def test_a_replay_says_where_it_went_another_way() -> None:
    log = journal(lived(options(), 1))
    place = next(i for i, e in enumerate(log.events) if e.kind == "bind" and e.fields["cached_tokens"] > 0)
    events = list(log.events)
    events[place] = with_fields(events[place], fields={**events[place].fields, "cached_tokens": 0})
    difference = replay(with_fields(log, events=tuple(events))).difference
    assert difference is not None
    assert difference.recorded == events[place]
    assert difference.replayed == log.events[place]
    assert "cached_tokens=0" in str(difference)


def test_a_life_with_another_pool_differs() -> None:
    log = journal(lived(options(), 2))
    events = list(log.events)
    events[0] = Event("options", {}, text=events[0].text.replace("blocks_total=24", "blocks_total=17"))
    assert replay(with_fields(log, events=tuple(events))).difference is not None


def test_a_journal_holds_no_token() -> None:
    """Equal prompts under two keys have no number in common, and tokens leave no trace."""
    logs = [journal(lived(options(hash_key=bytes([key]) * 16), 4)) for key in (1, 2)]
    numbers = [{n for e in log.events if e.kind == "prompt" for n in e.rest} for log in logs]
    assert numbers[0]
    assert not numbers[0] & numbers[1]
    assert [e.fields for e in logs[0].events if e.kind == "plan"] == [
        e.fields for e in logs[1].events if e.kind == "plan"
    ]


def test_a_ring_or_a_torn_journal_cannot_be_replayed() -> None:
    scheduler = lived(options(), 5)
    with pytest.raises(SetupError, match="only a journal"):
        replay(read_log(scheduler.log()))
    log = journal(scheduler)
    with pytest.raises(SetupError, match="lacks its first 7 records"):
        replay(with_fields(log, dropped=7))


def test_a_journal_cut_off_in_the_middle_of_a_record_replays_up_to_there(tmp_path: Path) -> None:
    part, before = lived(options(), 6).take_journal()
    path = tmp_path / "events"
    path.write_bytes((header(3, before) + part)[:-3])
    found = replay(read_journal(path))
    assert found.steps > 50
    assert found.difference is None or found.difference.recorded is None


def test_a_failing_journal_shrinks_to_what_matters() -> None:
    log = journal(lived(options(), 7, calls=200))
    wanted = {e.fields["request_id"] for e in log.events if e.kind == "submit"}
    pair = sorted(wanted)[:2]

    def fails(events: object) -> bool:
        here = {e.fields["request_id"] for e in events if e.kind == "submit"}  # type: ignore[attr-defined]
        return set(pair) <= here

    least = shrink(log.events, fails)
    assert [event.kind for event in least] == ["submit", "submit"]
    assert all(event.kind in INPUTS for event in least)
