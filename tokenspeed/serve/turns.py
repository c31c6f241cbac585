# SPDX-License-Identifier: MIT
"""The turns of one server: chat prompts through the turn ledger, off the event loop where they are long.

In: what a dialect read of a request. Out: a `Turn`, whose ids are those of rendering and encoding everything.
What is short is done at once, since handing it to a thread costs more; at most `INLINE_BYTES` of new messages
and `INLINE_IDS` of an answer, about 3 ms, so that a stream beside it does not notice. One turn in a hundred is
made again in full behind its own back: if ids differ, that is logged and counted, and the session starts anew.
It knows no dialect and reads no body.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import numpy as np

from tokenspeed.base.errors import TokenSpeedError
from tokenspeed.base.log import get_logger
from tokenspeed.obs.metrics import Metrics
from tokenspeed.text.chat_template import Message
from tokenspeed.text.ledger import Asked, Effort, Found, Ledger, Record, Turn, Writer
from tokenspeed.text.plane import TextPlane

INLINE_BYTES: Final = 16 << 10
INLINE_IDS: Final = 1024
CHECKED_SHARE: Final = 0.01
_log = get_logger("serve")
_T = TypeVar("_T")
_Run = Callable[[Callable[[], Any]], Awaitable[Any]]


class Turns:
    """Belongs to one event loop; `run` does text work in a thread."""

    def __init__(self, plane: TextPlane, metrics: Metrics, run: _Run) -> None:
        self.ledger = Ledger()
        self.checked_share = CHECKED_SHARE
        self._writer = Writer(plane)
        self._metrics = metrics
        self._run = run
        self._dice = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    def prepare(self) -> None:
        """Lint the template; takes a second, so in a thread."""
        self._writer.lint()

    def find(self, asked: Asked) -> Found | None:
        """What is known of a prompt's beginning."""
        return self.ledger.find(asked)

    async def append(self, found: Found, asked: Asked, messages: list[Message]) -> Turn | None:
        """The prompt that adds `messages` to what was found; None if all messages are needed."""
        assert found.mark is not None
        if asked.end - asked.begin - found.mark.span_end <= INLINE_BYTES:
            turn = self._writer.append(found, asked, messages)
        else:
            turn = await self._run(lambda: self._writer.append(found, asked, messages))
        return None if turn is None else self._kept(turn)

    async def render(
        self,
        found: Found | None,
        asked: Asked,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
    ) -> Turn:
        """The prompt of all messages; `RequestError` where the model cannot express it."""
        turn = await self._run(lambda: self._writer.render(found, asked, messages, tools, variables))
        return self._kept(turn)

    def answered(self, turn: Turn, ids: list[int]) -> None:
        """The model ended its answer: the next prompt will probably quote it."""
        if turn.record not in self.ledger:  # a later turn has taken its place
            return
        if len(ids) <= INLINE_IDS:
            self._keep(self._writer.with_answer(turn.record, ids), turn.record)
        else:
            self._begin(self._foretell(turn.record, ids))

    def check(self, turn: Turn, full: Callable[[], list[int]]) -> None:
        """Perhaps compare a turn's ids with those `full` makes from everything, in the background."""
        if turn.effort is not Effort.WHOLE and self._dice.random() < self.checked_share:
            self._begin(self._compare(turn, full))

    def _kept(self, turn: Turn) -> Turn:
        self._metrics.chat_prompts.labels(turn.effort.value).inc()
        self._metrics.chat_tokens.labels("reused").inc(turn.ids_reused)
        self._metrics.chat_tokens.labels("encoded").inc(len(turn.prompt_ids) - turn.ids_reused)
        self._keep(turn.record, turn.replaced)
        return turn

    def _keep(self, record: Record | None, replaced: Record | None) -> None:
        if record is not None:
            self.ledger.keep(record, replaced)
            self._metrics.ledger_bytes.set(self.ledger.bytes_held)

    async def _foretell(self, record: Record, ids: list[int]) -> None:
        answered = await self._run(lambda: self._writer.with_answer(record, ids))
        if record in self.ledger:
            self._keep(answered, record)

    async def _compare(self, turn: Turn, full: Callable[[], list[int]]) -> None:
        ids = np.array(await self._run(full), np.int32)
        if np.array_equal(ids, turn.prompt_ids):
            self._metrics.ledger_checks.labels("equal").inc()
            return
        self._metrics.ledger_checks.labels("different").inc()
        self.ledger.drop_lineage(turn.record.lineage)
        same = min(len(ids), len(turn.prompt_ids))
        apart = np.flatnonzero(ids[:same] != turn.prompt_ids[:same])
        _log.error(
            "the turn ledger made %d ids where a full encode makes %d; they differ from id %d on (%s); "
            "the session's records are dropped",
            len(turn.prompt_ids),
            len(ids),
            int(apart[0]) if len(apart) else same,
            turn.effort.value,
        )

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Awaitable[None]) -> None:
    """Background work gives way: too busy a server, or one that closes, leaves it."""
    try:
        await work
    except (TokenSpeedError, RuntimeError) as error:
        _log.debug("background work on a turn was left: %s", error)
