# SPDX-License-Identifier: MIT
"""The front on a clock and a core that the test owns: what it records of each request is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.errors import EngineDeadError
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.engine import wire
from tokenspeed.engine.front import AsyncEngine

S = 1_000_000
READY = wire.Ready(
    pid=1, device="cpu: a CPU", vocab_size=100, context_tokens_max=64, block_tokens=4, blocks_total=32, slots_max=4,
    waiting_max=4, overlap=False, choices=[],
)  # fmt: skip


class Hand:
    """The test's end of an engine: says what a core would say, notes what one would hear."""

    def __init__(self) -> None:
        self.ready = READY
        self.heard: list[wire.Message] = []
        self.clock = FakeClock(7 * S)
        self.engine = AsyncEngine(self, self.clock)

    def listen(self, on_report: Callable[[wire.Report], None], on_death: Callable[[str], None]) -> None:
        self.report = on_report
        self.die = on_death

    def send(self, message: wire.Message) -> None:
        self.heard.append(message)

    async def stop(self, grace_s: float) -> None:
        pass

    def say(self, after_us: int, *deltas: wire.Delta) -> None:
        self.clock.advance_us(after_us)
        self.report(wire.Deltas(list(deltas), 1))


def _ids(count: int) -> bytes:
    return wire.ids_bytes(np.arange(count))


def _with_hand(work: Callable[[Hand], None]) -> None:
    async def run() -> None:
        work(Hand())

    asyncio.run(run())


def test_a_timeline_holds_every_moment_and_its_sums_are_exact() -> None:
    def work(hand: Hand) -> None:
        received_us = hand.clock.now_us()
        hand.clock.advance_us(250)
        stream = hand.engine.generate(
            [1, 2, 3],
            SamplingParams(),
            session="s",
            answer_id="cmpl-x",
            received_us=received_us,
            traceparent="00-1-2-01",
        )
        hand.say(1_000, wire.Delta(1, _ids(1), cached_tokens=2, queue_us=400))
        for gap_us in (333, 333, 334):
            hand.say(gap_us, wire.Delta(1, _ids(1)))
        hand.say(2_000, wire.Delta(1, _ids(2), finish="length", retractions=1))
        (timeline,) = hand.engine.requests.find("cmpl-x")
        assert timeline is stream.timeline
        assert timeline.traceparent == "00-1-2-01"
        assert (timeline.queued_us, timeline.first_step_us) == (received_us + 250, received_us + 650)
        assert (timeline.cached_tokens, timeline.retractions) == (2, 1)
        assert (timeline.finish, timeline.output_tokens) == ("length", 6)
        first_us, whole_us = timeline.first_token_us - received_us, timeline.end_us - received_us
        assert (first_us, whole_us) == (1_250, 4_250)
        assert timeline.gaps_us() == [333, 333, 334, 2_000, 0]
        assert sum(timeline.gaps_us()) == whole_us - first_us

    _with_hand(work)


def test_the_metrics_keep_the_same_sums() -> None:
    def work(hand: Hand) -> None:
        hand.engine.generate([1], SamplingParams())
        hand.say(S, wire.Delta(1, _ids(1), cached_tokens=0, queue_us=0))
        hand.say(S // 2, wire.Delta(1, _ids(2)))
        hand.say(S // 4, wire.Delta(1, _ids(1), finish="length"))
        registry = hand.engine.metrics.registry
        value = registry.get_sample_value
        assert value("tokenspeed_inter_token_seconds_count") == 3
        assert value("tokenspeed_inter_token_seconds_sum") == 0.75
        whole, first = (
            value(f"tokenspeed_{name}_seconds_sum") for name in ("request", "time_to_first_token")
        )
        assert (whole, first) == (1.75, 1.0)

    _with_hand(work)


def test_every_end_is_recorded_once() -> None:
    def work(hand: Hand) -> None:
        streams = [hand.engine.generate([1], SamplingParams()) for _ in range(3)]
        streams[0].abort("client")
        streams[0].abort("client")
        hand.report(wire.Refused(2, "queue_full"))
        hand.die("gone")
        assert [stream.timeline.finish for stream in streams] == ["cancelled", "refused", "engine_dead"]
        assert len(list(hand.engine.requests)) == 3
        with pytest.raises(EngineDeadError):
            hand.engine.generate([1], SamplingParams())

    _with_hand(work)


def test_history_follows_tokens_and_starts() -> None:
    def work(hand: Hand) -> None:
        for _ in range(2):
            hand.engine.generate([1, 2, 3], SamplingParams())
        deltas = [wire.Delta(i, _ids(1), cached_tokens=2, queue_us=0) for i in (1, 2)]
        hand.say(100_000, *deltas)
        hand.say(100_000, wire.Delta(1, _ids(1)), wire.Delta(2, _ids(1)))
        hand.clock.advance_us(S)
        (second,) = hand.engine.history.last(hand.clock.now_us(), 60)
        assert (second.tokens, second.gaps, second.gap_us_sum) == (4, 2, 200_000)
        assert (second.prompt_tokens, second.cached_tokens) == (6, 4)

    _with_hand(work)
