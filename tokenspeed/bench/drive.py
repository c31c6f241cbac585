# SPDX-License-Identifier: MIT
"""Plays conversations against a server and turns what came back into rows.

Closed loop: `load` users at once; each takes the next conversation when its last one has ended, and sends a
turn as soon as the answer before it is whole and its think time is over. Open loop: every conversation starts
at its arrival, however late the server is. A refused or broken request ends its conversation and is a row with
an error; nothing is sent twice. What a prompt may reuse is worked out after the level, from the ids sent.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from tokenspeed.base.clock import Clock
from tokenspeed.bench.client import Connection
from tokenspeed.bench.conversation import Conversation, Ids, Turn
from tokenspeed.bench.dialect import TAPES, Answer, Ask, Tape
from tokenspeed.bench.record import Row
from tokenspeed.bench.validity import Ledger


class Watcher(Protocol):
    """Sees a level while it runs."""

    def piece(self, data: bytes) -> None: ...
    def call(self, row: Row) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """How to reach a server and what to ask of it. `filler` makes ids for an answer that came without any."""

    connect: Callable[[Callable[[bytes], None]], Connection]
    clock: Clock
    ask: Ask
    api: str
    block_tokens: int
    filler: Callable[[int], Ids]


@dataclass(frozen=True, slots=True)
class _Call:
    """A row before its level is over, with the ids that were sent and that were computed for it."""

    row: Row
    prompt: Ids | None
    sequence: Ids | None


@dataclass(frozen=True, slots=True)
class Played:
    """The rows of a level, whose times count from `began_us` of the clock."""

    rows: tuple[Row, ...]
    began_us: int


class _Player:
    """One conversation under way. Its first turn is encoded before the level begins."""

    def __init__(self, target: Target, conversation: Conversation, watcher: Watcher) -> None:
        self.conversation = conversation
        self.calls: list[_Call] = []
        self._target = target
        self._watcher = watcher
        self._tape: Tape = TAPES[target.api](conversation)
        self._tape.turn(conversation.turns[0])
        # Names nothing but itself: a server may keep a session's requests together, or show them so.
        self._headers = {} if target.ask.plain else {"X-Session-ID": uuid.uuid4().hex}

    async def play(self, connection: Connection) -> None:
        for index, turn in enumerate(self.conversation.turns):
            if turn.think_us:
                await asyncio.sleep(turn.think_us / 1e6)
            if index:
                self._tape.turn(turn)
            prompt = self._tape.ids
            body = self._tape.body(self._target.ask, turn)
            reply = await connection.exchange("POST", self._tape.path, body, self._headers)
            ended_us = self._target.clock.now_us()
            answer = self._tape.read(reply)
            first = index == 0 and not self.conversation.later
            row = _row(
                self.conversation.id, 0 if first else max(index, 1), turn, answer, reply.sent_us, ended_us
            )
            row = replace(row, sent_tokens=None if prompt is None else len(prompt))
            if self._target.ask.forced and turn.answer is not None and not row.error:
                row = replace(row, replayed=answer.ids == turn.answer.tolist())
            self._tape.answer(*self._appended(turn, answer))
            known = answer.ids is not None and (turn.answer is None or answer.ids == turn.answer.tolist())
            sequence = self._tape.ids if known else None
            # No server has computed the token it sampled last.
            self.calls.append(_Call(row, prompt, None if sequence is None else sequence[:-1]))
            self._watcher.call(row)
            if row.error:
                return

    def _appended(self, turn: Turn, answer: Answer) -> tuple[Ids, str]:
        """What the next prompt holds for this answer: the recorded one, the real one, or filler."""
        if turn.answer is not None:
            return turn.answer, answer.text
        if answer.ids is not None:
            return np.array(answer.ids[: turn.answer_tokens], np.int32), answer.text
        return self._target.filler(turn.answer_tokens), answer.text


def _row(name: str, turn: int, asked: Turn, answer: Answer, sent_us: int, ended_us: int) -> Row:
    times = answer.times_us
    return Row(
        conversation=name,
        turn=turn,
        asked_tokens=asked.answer_tokens,
        sent_us=sent_us,
        end_us=ended_us,
        first_us=times[0] if times else 0,
        gaps_us=tuple(after - before for before, after in itertools.pairwise(times)),
        event_tokens=None if answer.event_tokens is None else tuple(answer.event_tokens),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        cached_tokens=answer.cached_tokens,
        error=answer.error,
    )


async def play_closed(
    target: Target, conversations: Sequence[Conversation], load: int, watcher: Watcher
) -> Played:
    """Play conversations with `load` users at once; return a row for each request sent."""
    players = [_Player(target, conversation, watcher) for conversation in conversations]
    waiting = iter(players)

    async def user() -> None:
        connection = target.connect(watcher.piece)
        for player in waiting:
            await player.play(connection)
        connection.close()

    with _quiet():
        await asyncio.gather(*(user() for _ in range(load)))
    return _played(target, players)


async def play_open(target: Target, conversations: Sequence[Conversation], watcher: Watcher) -> Played:
    """Play every conversation at its arrival; return a row for each request sent."""
    players = [_Player(target, conversation, watcher) for conversation in conversations]
    began_us = target.clock.now_us()

    async def user(player: _Player) -> None:
        late_us = target.clock.now_us() - began_us
        await asyncio.sleep(max(0, player.conversation.arrival_us - late_us) / 1e6)
        connection = target.connect(watcher.piece)
        await player.play(connection)
        connection.close()

    with _quiet():
        await asyncio.gather(*(user(player) for player in players))
    return _played(target, players)


class _quiet:  # noqa: N801  a context manager, spelled as one
    """Keeps the garbage collector from pausing the clock's owner."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *error: object) -> None:
        gc.enable()


def _played(target: Target, players: Sequence[_Player]) -> Played:
    calls = [call for player in players for call in player.calls]
    began_us = min(call.row.sent_us for call in calls)
    calls.sort(key=lambda call: call.row.sent_us)
    implied = _implied_by_ids(calls, target.block_tokens)
    if target.api == "chat":
        implied = _implied_by_counts(calls)
    rows = tuple(
        replace(
            call.row,
            sent_us=call.row.sent_us - began_us,
            first_us=call.row.first_us - began_us if call.row.first_us else 0,
            end_us=call.row.end_us - began_us,
            implied_least=least,
            implied_most=most,
        )
        for call, (least, most) in zip(calls, implied, strict=True)
    )
    return Played(rows, began_us)


def _implied_by_ids(calls: Sequence[_Call], block_tokens: int) -> list[tuple[int, int]]:
    """What each prompt may reuse, from the ids of all sent before it in this level."""
    ledger = Ledger(block_tokens)
    implied: list[tuple[int, int]] = [(0, 0)] * len(calls)
    for index, ids in _in_order(calls):
        if ids is None:
            prompt = calls[index].prompt
            assert prompt is not None
            implied[index] = ledger.implied(prompt)
            ledger.begin(prompt)
        else:
            ledger.finish(ids)
    return implied


def _in_order(calls: Sequence[_Call]) -> Iterator[tuple[int, Ids | None]]:
    """The moments of a level in order: (call, None) when sent, (call, ids) when those were computed."""
    moments: list[tuple[int, int, int, Ids | None]] = []
    for index, call in enumerate(calls):
        if call.prompt is None:
            continue
        moments.append((call.row.sent_us, 1, index, None))
        if call.row.first_us:
            moments.append((call.row.first_us, 0, index, call.prompt))
        if call.sequence is not None and not call.row.error:
            moments.append((call.row.last_us, 0, index, call.sequence))
    moments.sort(key=lambda moment: moment[:3])
    for _, _, index, ids in moments:
        yield index, ids


def _implied_by_counts(calls: Sequence[_Call]) -> list[tuple[int, int]]:
    """For chat, whose ids only the server knows: a turn may reuse the prompt before it, and its answer.

    Its least is the prompt before it less the turn marker a template may end in; a first turn implies nothing.
    """
    before: dict[str, Row] = {}
    implied: list[tuple[int, int]] = []
    for call in calls:
        row = before.get(call.row.conversation)
        least, most = (0, 0) if row is None else (row.prompt_tokens, row.prompt_tokens + row.output_tokens)
        implied.append((least, max(least, most)))
        if not call.row.error:
            before[call.row.conversation] = call.row
    return implied
