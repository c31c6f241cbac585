# SPDX-License-Identifier: MIT
"""Answers with grammars, through the real loop, desk and scheduler: sentences, ends, waits, and neighbours.

The executor computes nothing and would say the prompt again; what its masks rule out it does not say.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.constraint import Constraint
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Scheduler, SchedulerOptions
from tokenspeed.engine import wire
from tokenspeed.engine.constraints import COSTLY, DEAD, Constraints, clear, clear_from
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import Loop
from tokenspeed.exec.null import NullExecutor
from tokenspeed.text.grammar.matcher import Vocabulary

VOCAB, STOP = 140, 2
PROMPT = [120] * 8 + list(b"hello, world! " * 4)
SETTLED: Future[Vocabulary] = Future()
SETTLED.set_result(Vocabulary([bytes([i]) for i in range(128)]))


def lark(pattern: str) -> Constraint:
    return Constraint(f'%llguidance {{"no_forcing": true}}\nstart: /{pattern}/')


@dataclass
class Answer:
    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    refused: str | None = None

    @property
    def closed(self) -> bool:
        return self.finish is not None or self.refused is not None


class World:
    """A core whose device computes nothing; the test is the front."""

    def __init__(self, *, overlap: bool, vocabulary: Future[Vocabulary] = SETTLED, slots: int = 4) -> None:
        options = SchedulerOptions(
            blocks_total=64 * slots,
            block_tokens=4,
            slots_max=slots,
            tokens_per_step_max=64,
            rows_per_step_max=slots,
            prefill_tokens_max=32,
            waiting_max=16,
            context_tokens_max=256,
            overlap=overlap,
            hash_key=bytes(16),
        )
        self.scheduler = Scheduler(options)
        self.woken = threading.Event()
        self.constraints = Constraints(vocabulary, vocab=VOCAB, threads=2, wake=self.woken.set)
        desk = Desk(self.scheduler, vocab_size=VOCAB, constraints=self.constraints)
        executor = NullExecutor(slots=slots, step_us=0)
        self.answers: dict[int, Answer] = {}
        self._inbox: list[wire.Request] = []
        self.loop = Loop(desk, executor, self, self, FakeClock(), overlap=overlap)

    def drain(self, *, wait: bool) -> list[wire.Request]:
        if wait and not self._inbox and self.constraints.waiting:
            assert self.woken.wait(30)
            self.woken.clear()
        messages, self._inbox = self._inbox, []
        return messages

    def send(self, report: wire.Report) -> None:
        if isinstance(report, wire.Refused):
            self.answers[report.request_id].refused = report.reason
        elif isinstance(report, wire.Deltas):
            for delta in report.items:
                answer = self.answers[delta.request_id]
                assert not answer.closed
                answer.ids += wire.ids_array(delta.ids).tolist()
                answer.finish, answer.error = delta.finish, delta.error

    def tell(self, message: wire.Request) -> None:
        self._inbox.append(message)

    def submit(self, constraint: Constraint | None = None, **sampling: Any) -> Answer:
        request_id = len(self.answers) + 1
        params = SamplingParams(**{"tokens_max": 40, "seed": 0, "stop_ids": (STOP,), **sampling})
        self.answers[request_id] = Answer()
        self.tell(wire.Generate(request_id, wire.ids_bytes(np.array(PROMPT)), params, constraint=constraint))
        return self.answers[request_id]

    def finish(self) -> None:
        self.loop.turn()
        while not all(answer.closed for answer in self.answers.values()):
            self.loop.turn()
        self.loop.turn()
        self.scheduler.check()
        assert self.scheduler.idle
        for answer in self.answers.values():
            answer.text = bytes(answer.ids).decode()


@pytest.fixture(params=[False, True], ids=["serial", "overlap"])
def world(request: pytest.FixtureRequest) -> World:
    return World(overlap=request.param)


def test_an_answer_is_a_sentence_and_its_neighbours_are_as_ever(world: World) -> None:
    free, held, other = (
        world.submit(tokens_max=9),
        world.submit(lark("[b-d]{3}x?:[0-9]{2}")),
        world.submit(tokens_max=30),
    )
    world.finish()
    assert re.fullmatch("[b-d]{3}x?:[0-9]{2}\x02", held.text)
    assert held.finish == "stop"
    alone = World(overlap=False)
    expected = alone.submit(tokens_max=9), alone.submit(tokens_max=30)
    alone.finish()
    assert (free.ids, other.ids) == (expected[0].ids, expected[1].ids)
    assert (free.finish, other.finish) == ("length", "length")


def test_many_rows_have_masks_of_their_own() -> None:
    world = World(overlap=True, slots=8)
    answers = [world.submit(lark(f"[a-c]{{2}}{digit}+\\.")) for digit in range(8)]
    world.finish()
    for digit, answer in enumerate(answers):
        assert re.fullmatch(f"[a-c]{{2}}{digit}+\\.\x02|[a-c]{{2}}{digit}+", answer.text), answer.text


def test_a_stop_id_comes_where_the_grammar_may_end_and_not_before_tokens_min(world: World) -> None:
    soon, late = world.submit(lark("[0-9]*")), world.submit(lark("[0-9]*"), tokens_min=12)
    short = world.submit(lark("[0-9]{3}"), tokens_min=12)
    world.finish()
    assert soon.text == "\x02"  # the lowest id that the mask has
    assert re.fullmatch("[0-9]{12}\x02", late.text)
    assert re.fullmatch("[0-9]{3}\x02", short.text)  # the grammar has nothing more to say


def test_an_answer_whose_grammar_is_complete_ends_without_a_stop_id(world: World) -> None:
    answer = world.submit(lark("[0-9]{3}"), stop_ids=())
    world.finish()
    assert re.fullmatch("[0-9]{3}", answer.text)
    assert (answer.finish, answer.error) == ("stop", None)


def test_the_length_cuts_a_form(world: World) -> None:
    answer = world.submit(lark("[0-9]{30}"), tokens_max=5)
    world.finish()
    assert (len(answer.ids), answer.finish) == (5, "length")


def test_a_grammar_that_no_token_can_follow_ends_its_request_alone(world: World) -> None:
    dead, free = (
        world.submit(lark("ab\u00e9c")),
        world.submit(tokens_max=20),
    )  # no token has the bytes of the third
    world.finish()
    assert (dead.text, dead.finish, dead.error) == ("ab", "error", DEAD)
    assert (len(free.ids), free.finish) == (20, "length")


def test_a_grammar_that_explodes_ends_its_request_alone(world: World) -> None:
    bomb = world.submit(Constraint('start: (A | B)+ "!"\nA: /(x?){400}[xy]{300}/\nB: /[xy]{1,900}z/'))
    free = world.submit(tokens_max=20)
    world.finish()
    assert bomb.refused == "grammar" or bomb.error in (COSTLY, DEAD) or bomb.finish == "length"
    assert (len(free.ids), free.finish) == (20, "length")


def test_a_grammar_that_does_not_compile_is_refused(world: World) -> None:
    wrong, right = world.submit(Constraint("start: nowhere")), world.submit(lark("[0-9]"))
    world.finish()
    assert wrong.refused == "grammar"
    assert right.finish == "stop"


def test_others_run_while_a_grammar_waits_for_the_vocabulary() -> None:
    vocabulary: Future[Vocabulary] = Future()
    world = World(overlap=True, vocabulary=vocabulary)
    held, free = world.submit(lark("[0-9]{2}")), world.submit(tokens_max=6)
    while not free.closed:
        world.loop.turn()
    assert not held.ids
    assert world.constraints.waiting
    vocabulary.set_result(SETTLED.result())
    world.finish()
    assert re.fullmatch("[0-9]{2}\x02", held.text)


def test_a_request_may_be_aborted_while_its_grammar_waits() -> None:
    vocabulary: Future[Vocabulary] = Future()
    world = World(overlap=True, vocabulary=vocabulary)
    held = world.submit(lark("[0-9]{2}"))
    world.loop.turn()
    world.tell(wire.Abort([1]))
    world.loop.turn()
    assert held.finish == "cancelled"
    vocabulary.set_result(SETTLED.result())
    world.finish()
    assert not held.ids


def test_a_desk_without_constraints_refuses_a_grammar() -> None:
    world = World(overlap=False)
    desk = Desk(world.scheduler, vocab_size=VOCAB)
    desk.accept(
        wire.Generate(
            1, wire.ids_bytes(np.array([1])), SamplingParams(tokens_max=1, seed=0), constraint=lark("a")
        ),
        0,
    )
    assert [note.reason for note in desk.take_notes() if isinstance(note, wire.Refused)] == ["grammar"]


def test_bits_are_cleared_at_every_place_of_a_word() -> None:
    for first in (0, 1, 31, 32, 33, 63, 64, 90):
        bits = np.full(2, -1, np.int32)
        clear_from(bits, first)
        assert np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist() == list(
            range(min(first, 64))
        )
    bits = np.full(2, -1, np.int32)
    clear(bits, np.array([0, 31, 32, 63, 63, 64, 1000]))
    assert np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little") == 0).tolist() == [
        0,
        31,
        32,
        63,
    ]
