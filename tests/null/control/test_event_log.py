# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tokenspeed.control import Scheduler, SchedulerOptions, read_log


def run(log_bytes: int, requests: int) -> Scheduler:
    scheduler = Scheduler(
        SchedulerOptions(
            blocks_total=64,
            block_tokens=4,
            slots_max=4,
            tokens_per_step_max=32,
            rows_per_step_max=4,
            prefill_tokens_max=32,
            waiting_max=4,
            context_tokens_max=128,
            log_bytes=log_bytes,
            seed=77,
        )
    )
    for request_id in range(requests):
        prompt = np.arange(10, dtype=np.int32)
        scheduler.submit(request_id, prompt, tokens_max=1, stop_ids=np.empty(0, np.int32), now_us=300)
        plan = scheduler.plan(400)
        assert plan is not None
        scheduler.commit(plan.step, np.zeros(plan.samples, np.int32))
        scheduler.commit(plan.step, np.zeros(plan.samples, np.int32))
    scheduler.cancel(999)
    return scheduler


def test_a_log_says_what_happened_in_order() -> None:
    log = read_log(run(log_bytes=4096, requests=1).log())
    assert (log.seed, log.dropped) == (77, 0)
    assert [event.kind for event in log.events] == [
        "submit",
        "bind",
        "plan",
        "commit",
        "finish",
        "late",
        "cancel",
    ]
    submit, _, plan = log.events[:3]
    assert (submit.fields["prompt_tokens"], submit.fields["now_us"]) == (10, 300)
    assert (plan.fields["step"], plan.fields["tokens"], plan.fields["now_us"]) == (1, 10, 400)
    assert log.events[-1].fields == {"request_id": 999, "was_alive": 0}


def test_a_full_ring_keeps_the_last_events_whole() -> None:
    log = read_log(run(log_bytes=1024, requests=200).log())
    assert log.dropped > 0
    assert len(log.events) > 10
    assert log.events[-1].kind == "cancel"


def test_other_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="TSL2"):
        read_log(b"nonsense")
