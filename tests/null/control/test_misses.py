# SPDX-License-Identifier: MIT
"""Why a prompt was not found further: said with the plan that binds its request."""

from __future__ import annotations

import numpy as np

from tokenspeed.control import MissReason, Scheduler, SchedulerOptions

P = 4


class Stage:
    """Requests of one token each, served one after another."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(
            SchedulerOptions(
                blocks_total=64,
                block_tokens=P,
                slots_max=2,
                tokens_per_step_max=128,
                rows_per_step_max=2,
                prefill_tokens_max=128,
                waiting_max=4,
                context_tokens_max=128,
            )
        )
        self.requests = 0

    def ask(self, prompt: list[int], session: int = 7) -> tuple[int, MissReason]:
        """(tokens found, why no more)."""
        self.requests += 1
        tokens, none = np.array(prompt, np.int32), np.empty(0, np.int32)
        self.scheduler.submit(self.requests, tokens, tokens_max=1, stop_ids=none, now_us=1, session=session)
        plan = self.scheduler.plan(1)
        assert plan is not None
        found = int(plan.cached_tokens[0]), MissReason(int(plan.miss_reasons[0]))
        self.scheduler.commit(plan.step, np.array([3], np.int32))
        self.scheduler.check()
        return found


def test_reasons_by_what_the_session_said_before() -> None:
    stage, history = Stage(), list(range(100, 133))
    assert stage.ask(history) == (0, MissReason.NEW)
    assert stage.ask(history) == (32, MissReason.NONE)
    assert stage.ask([*history, *range(20)]) == (32, MissReason.NEW)
    edited = [*history[:10], 1, *history[11:], *range(20)]
    assert stage.ask(edited) == (8, MissReason.REWRITTEN)
    assert stage.ask([*edited[:10], 2, *edited[11:]]) == (8, MissReason.VOLATILE_LINE)
    stage.scheduler.flush_prefix()
    assert stage.ask([*edited[:10], 2, *edited[11:]]) == (0, MissReason.EVICTED)


def test_sessions_do_not_speak_for_each_other() -> None:
    stage, history = Stage(), list(range(100, 133))
    assert stage.ask(history, session=1) == (0, MissReason.NEW)
    assert stage.ask(history, session=2) == (32, MissReason.NONE)
    assert stage.ask([5, *history], session=2) == (0, MissReason.REWRITTEN)
    assert stage.ask([6, *history], session=0) == (0, MissReason.NEW)
