# SPDX-License-Identifier: MIT
"""What every handler needs, as one value: the engine, the text plane, the limits, the name of the model.

Text work runs in a small pool of threads with a bounded queue, so that neither a long prompt nor many of them
stop the event loop. Holds no request.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from tokenspeed.base.config import EngineConfig
from tokenspeed.base.constraint import Constraint
from tokenspeed.base.errors import CapacityError, PromptTooLongError, RequestError
from tokenspeed.serve.body import BodyReader
from tokenspeed.serve.errors import ApiError, ErrorNote
from tokenspeed.serve.generation import Choice, Engine, Generation, Origin
from tokenspeed.serve.request_log import RequestLog
from tokenspeed.serve.responses.store import Store
from tokenspeed.serve.seal import Seal
from tokenspeed.serve.sessions import tenant_floors
from tokenspeed.serve.turns import Turns
from tokenspeed.text.grammar import Wanted, constraint_for
from tokenspeed.text.grammar.matcher import Checked
from tokenspeed.text.ledger import Turn
from tokenspeed.text.plane import TextPlane
from tokenspeed.text.tools.spec import Dialect

_T = TypeVar("_T")
_TEXT_THREADS: Final = 2
ERRORS_KEPT: Final = 16


class Service:
    """One served model."""

    def __init__(self, engine: Engine, text: TextPlane, config: EngineConfig, model_name: str) -> None:
        self.engine = engine
        self.text = text
        self.config = config
        self.model_name = model_name
        self.started_s = int(time.time())
        self._tenant_floors = tenant_floors(config.scheduler.tenant_floor)
        self.draining = False
        self.bodies = BodyReader(config.server.body_bytes_max)
        self.responses = Store()
        self.seal = Seal(config.server.api_key)
        directory = config.server.log_requests
        self.request_log = None if directory is None else RequestLog(Path(directory))
        self.errors: deque[ErrorNote] = deque(maxlen=ERRORS_KEPT)
        """The last answers that were errors, or ended as one; those of strangers and to no route are not kept."""
        self._threads = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="text")
        self._text_jobs = 0
        self._grammars = Checked()
        self.turns = Turns(text, engine.metrics, self.run_text)
        self._threads.submit(self.turns.prepare)

    @property
    def context_tokens_max(self) -> int:
        """Longest prompt plus answer."""
        return self.engine.ready.context_tokens_max

    def note_error(self, error: BaseException) -> None:
        """Remember that a request ended with `error`."""
        said = ApiError.of(error)
        self.errors.append(ErrorNote(self.engine.clock.now_us(), said.status, said.code, said.param))

    async def run_text(self, work: Callable[[], _T]) -> _T:
        """Run text work off the event loop; `CapacityError` when too much of it waits."""
        if self._text_jobs >= self.config.scheduler.waiting_max:
            raise CapacityError(
                "too many prompts are waiting to be tokenised; try again later", retry_after_s=1
            )
        self._text_jobs += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._text_jobs -= 1

    async def constraint(self, wanted: Wanted, dialect: Dialect | None = None) -> Constraint | None:
        """The grammar of an answer of this form, known to compile; `RequestError` names the field at fault.

        The dialect is the model's own where none is given.
        """
        return None if wanted.free else await self.run_text(lambda: self._constraint(wanted, dialect))

    def _constraint(self, wanted: Wanted, dialect: Dialect | None) -> Constraint | None:
        constraint = constraint_for(dialect or self.text.dialect, wanted)
        if constraint is not None:
            self._grammars.check(constraint)
        return constraint

    def check_model(self, name: str | None) -> None:
        """`RequestError` 404 unless `name` is served; None means the one model there is."""
        if name is not None and name != self.model_name:
            raise RequestError(
                f"the model {name[:200]!r} does not exist; this server has {self.model_name!r}",
                code="model_not_found",
                param="model",
                status=404,
            )

    def check_length(self, prompt_tokens: int, param: str) -> None:
        """Refuse a prompt that leaves no room for an answer, before it is queued (rule R3)."""
        if prompt_tokens >= self.context_tokens_max:
            raise PromptTooLongError(prompt_tokens, self.context_tokens_max - 1, param=param)

    def generate(
        self,
        choices: list[Choice],
        origin: Origin,
        *,
        answer_id: str,
        per_prompt: int,
        turn: Turn | None = None,
    ) -> Generation:
        """Start the answers of one API request; what the engine refuses at once is raised here.

        With `turn`, which made the prompt, a session that nobody named is the one whose prompts it continues, and
        a single answer is remembered for the next one.
        """
        if turn is not None and origin.session.id is None:
            origin = replace(origin, session=replace(origin.session, id=f"~{turn.record.lineage}"))
        if not origin.session.floor_mtps and (floor_mtps := self._tenant_floors.get(origin.salt, 0)):
            origin = replace(origin, session=replace(origin.session, floor_mtps=floor_mtps))
        if self.draining:
            raise CapacityError("the server is shutting down", retry_after_s=1, status=503)
        return Generation(
            self.engine,
            self.text.tokenizer,
            choices,
            origin,
            answer_id=answer_id,
            per_prompt=per_prompt,
            on_answer=None if turn is None or len(choices) > 1 else partial(self.turns.answered, turn),
        )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
