# SPDX-License-Identifier: MIT
"""What does a chat turn cost before the core hears of it? CPU time by turn, with the turn ledger and without.

In: a model directory (the bundled model's when absent) and recorded sessions, JSON lines whose `messages` are
OpenAI messages and whose `turns` name the answers by their index `i`; drawn ones when absent. Out: a table, and
with `--out` the raw rows as JSON.

Counted: from the body's bytes in memory to the message for the core as bytes, all in one thread: reading fields
and messages, comparing, rendering, encoding, checks, and the wire's encoding. Not counted: HTTP itself, the
core, and what is done once an answer has ended (its ids are taken down while the agent works; its own column).
The whole way is what the same server does without a ledger; it is taken on every `--whole-every`th turn, and its
ids are compared with the others. Each turn is made three times and the least time counts, as the machine may be
shared; first turns, which bring their whole context, are left out of the table.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
from starlette.requests import Request

from tokenspeed.base.config import EngineConfig, ModelConfig
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.bench.frontend import source_text
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.engine import wire
from tokenspeed.engine.front import AsyncEngine, Core, Stream
from tokenspeed.engine.source import BUNDLED
from tokenspeed.serve.anthropic.request import MESSAGES
from tokenspeed.serve.openai.chat_request import SPELLING
from tokenspeed.serve.reading import Asking, Document, Prompt, Spelling, full_ids, prompt_of, read
from tokenspeed.serve.responses.request import RESPONSES
from tokenspeed.serve.service import Service
from tokenspeed.text.chat_template import Message
from tokenspeed.text.ledger import Turn
from tokenspeed.text.plane import TextPlane

CONTEXT_TOKENS_MAX = 1 << 20
_T = TypeVar("_T")


class Deaf:
    """A core that encodes what it is sent, as the true one does, and drops it."""

    def __init__(self, vocab_size: int) -> None:
        self.ready = wire.Ready(
            1, "none", vocab_size, CONTEXT_TOKENS_MAX, 64, 1 << 20, 8, 64, overlap=False, choices=[]
        )

    def listen(self, on_report: Any, on_death: Any) -> None:
        pass

    def send(self, message: wire.Message) -> None:
        wire.encode(message)

    async def stop(self, grace_s: float) -> None:
        pass


def as_blocks(message: Message) -> list[Document]:
    """A message as Anthropic's clients send it."""
    text = [{"type": "text", "text": message["content"]}] if message.get("content") else []
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": text}
        return [{"role": "user", "content": [result]}]
    calls = [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": call["function"]["name"],
            "input": msgspec.json.decode(call["function"]["arguments"] or b"{}"),
        }
        for call in message.get("tool_calls") or ()
    ]
    return [{"role": message["role"], "content": [*text, *calls]}]


def as_items(message: Message) -> list[Document]:
    """A message as clients of responses send it."""
    text = message.get("content") or ""
    if message["role"] == "tool":
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": text}]
    kind = "output_text" if message["role"] == "assistant" else "input_text"
    said = {"type": "message", "role": message["role"], "content": [{"type": kind, "text": text}]}
    calls = [
        {"type": "function_call", "call_id": call["id"], **call["function"]}
        for call in message.get("tool_calls") or ()
    ]
    return [*([said] if text else []), *calls]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How sessions are sent."""

    spelling: Spelling[Any]
    elements: Callable[[Message], list[Document]]
    marks: bool = False  # the last element bears a cache mark, which moves every turn

    def body(self, encoded: list[bytes]) -> bytes:
        """The body of a turn whose history is these elements."""
        elements = list(encoded)
        if self.marks:
            elements[-1] = elements[-1][:-3] + b',"cache_control":{"type":"ephemeral"}' + elements[-1][-3:]
        history = b'"%b":[' % self.spelling.history.encode() + b",".join(elements) + b"]"
        return b'{"model":"model","stream":true,' + history + b"}"


DIALECTS = {
    "chat": Dialect(SPELLING, lambda message: [message]),
    "messages": Dialect(MESSAGES, as_blocks, marks=True),
    "responses": Dialect(RESPONSES, as_items),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One turn; times are CPU times of the thread."""

    session: str
    prompt_tokens: int
    new_tokens: int  # beyond the last prompt of the session
    encoded_tokens: int  # in this turn
    effort: str
    body_bytes: int
    read_us: float
    prompt_us: float
    send_us: float
    answer_us: float  # after the answer of the turn before
    whole_us: float | None = None

    @property
    def turn_us(self) -> float:
        return self.read_us + self.prompt_us + self.send_us


@dataclass(frozen=True, slots=True)
class Session:
    name: str
    messages: list[Message]
    answers: list[int]  # indexes of the answers


def recorded(path: Path, tokens_least: int, count: int) -> Iterator[Session]:
    """Sessions of a file, the first `count` that are long enough."""
    with gzip.open(path) as lines:
        for line in lines:
            document = msgspec.json.decode(line)
            if document["tokens"] >= tokens_least and document["turns"] and count:
                count -= 1
                yield Session(document["id"], document["messages"], [turn["i"] for turn in document["turns"]])


def drawn(count: int, characters: int, turns: int, seed: int) -> Iterator[Session]:
    """Sessions of text that looks like source: a long first turn, then calls and results."""
    for index in range(count):
        dice = random.Random(f"{seed} {index}")
        messages: list[Message] = [
            {"role": "system", "content": source_text(dice, 4000)},
            {"role": "user", "content": source_text(dice, characters)},
        ]
        answers: list[int] = []
        for turn in range(turns):
            answers.append(len(messages))
            function = {"name": "read", "arguments": msgspec.json.encode({"at": turn}).decode()}
            calls = [{"id": f"call_{turn}", "type": "function", "function": function}]
            messages.append({"role": "assistant", "content": source_text(dice, 300), "tool_calls": calls})
            result = source_text(dice, 2000)
            messages.append({"role": "tool", "content": result, "tool_call_id": f"call_{turn}"})
        yield Session(f"drawn-{index}", messages, answers)


class OneThread(Service):
    """Does in this thread what a server does in others, so that it is measured."""

    async def run_text(self, work: Callable[[], _T]) -> _T:
        return work()


class Bench:
    """One server without its sockets."""

    def __init__(self, plane: TextPlane, repeats: int, dialect: Dialect) -> None:
        self.dialect = dialect
        self.repeats = repeats
        self.engine = AsyncEngine(cast(Core, Deaf(plane.tokenizer.vocab_size)))
        config = EngineConfig(model=ModelConfig(model=str(BUNDLED)))
        self.service = OneThread(self.engine, plane, config, "model")
        self.service.turns.prepare()
        self.service.turns.checked_share = 0.0

    async def play(self, session: Session, whole_every: int, context_least: int) -> AsyncIterator[Row]:
        """All turns of a session in order."""
        elements = map(self.dialect.elements, session.messages)
        encoded = [[msgspec.json.encode(element) for element in each] for each in elements]
        turn: Turn | None = None
        said: list[int] = []
        before = 0
        for number, index in enumerate(session.answers):
            data = self.dialect.body([element for each in encoded[:index] for element in each])
            answer_us = 0.0 if turn is None else (await timed(partial(self.answered, turn, said)))[0]
            prompt, took = await self.least(data)
            read_us, prompt_us, send_us = took
            turn = prompt.turn
            said = self.answer_ids(session.messages[index])
            assert turn is not None
            new, before = len(prompt.ids) - before, len(prompt.ids)
            if len(prompt.ids) < context_least:
                continue
            whole_us = None
            if number % whole_every == 0:
                whole_us, ids = await timed(partial(self.whole, data))
                if not np.array_equal(ids, prompt.ids):
                    raise SystemExit(f"{session.name}, turn {number}: ids differ from those of the whole way")
            yield Row(
                session=session.name,
                prompt_tokens=len(prompt.ids),
                new_tokens=new,
                encoded_tokens=len(prompt.ids) - turn.ids_reused,
                effort=turn.effort.value,
                body_bytes=len(data),
                read_us=read_us,
                prompt_us=prompt_us,
                send_us=send_us,
                answer_us=answer_us,
                whole_us=whole_us,
            )

    async def least(self, data: bytes) -> tuple[Prompt, tuple[float, float, float]]:
        """A turn, made several times from the same ledger, and the times of the quickest."""
        times: list[tuple[float, float, float]] = []
        ledger = self.service.turns.ledger
        while True:
            read_us, asking = await timed(partial(self.read, data))
            prompt_us, prompt = await timed(partial(prompt_of, asking, self.service))
            send_us, stream = await timed(partial(self.send, prompt.ids))
            stream.abort()
            times.append((read_us, prompt_us, send_us))
            if len(times) == self.repeats:
                return prompt, min(times, key=sum)
            assert prompt.turn is not None
            ledger.drop(prompt.turn.record)
            if prompt.turn.replaced is not None:
                ledger.keep(prompt.turn.replaced)

    async def read(self, data: bytes) -> Asking[Any]:
        return read(_request(), self.service, data, self.dialect.spelling)

    async def answered(self, turn: Turn, ids: list[int]) -> None:
        self.service.turns.answered(turn, ids)
        await asyncio.sleep(0)  # long ones are done in the background
        await asyncio.sleep(0)

    async def send(self, ids: np.ndarray | Sequence[int]) -> Stream:
        return self.engine.generate(ids, SamplingParams(tokens_max=1))

    async def whole(self, data: bytes) -> list[int]:
        """What a server without a ledger does."""
        ids = full_ids(data, self.dialect.spelling, self.service)
        (await self.send(ids)).abort()
        return ids

    def answer_ids(self, answer: Message) -> list[int]:
        """What a model would have said for this message, to its end."""
        plane = self.service.text
        assert plane.template is not None
        user: Message = {"role": "user", "content": "x"}
        result: Message = {"role": "tool", "content": "x", "tool_call_id": "x"}
        before = plane.text_of_chat([user])
        after = plane.text_of_chat([user, answer, result], add_generation_prompt=False)
        if not after.startswith(before):
            return []
        ids = plane.tokenizer.encode(after[len(before) :], add_special_tokens=False)
        ends = [at for at, token_id in enumerate(ids) if token_id in plane.stop_ids]
        return ids[: ends[0] + 1] if ends else []


def _request() -> Request:
    request = Request({"type": "http", "headers": []})
    request.state.received_us = 0
    return request


async def timed(work: Callable[[], Awaitable[_T]]) -> tuple[float, _T]:
    """(CPU microseconds of this thread, result)."""
    begin = time.thread_time_ns()
    result = await work()
    return (time.thread_time_ns() - begin) / 1000, result


COLUMNS = (
    "context", "turns", "new p50", "encoded p50", "turn p50 us", "p90", "p99", "read", "prompt", "send",
    "answer p50 us", "whole p50 us", "times",
)  # fmt: skip


def cells(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """A line of the table."""
    turns = sorted(row.turn_us for row in rows)
    wholes = [row for row in rows if row.whole_us is not None]
    whole = statistics.median([row.whole_us or 0.0 for row in wholes]) if wholes else 0.0
    middle = statistics.median(turns)
    return (
        name,
        f"{len(rows)}",
        f"{statistics.median(row.new_tokens for row in rows):.0f}",
        f"{statistics.median(row.encoded_tokens for row in rows):.0f}",
        f"{middle:.0f}",
        *(f"{turns[min(len(turns) - 1, len(turns) * share // 100)]:.0f}" for share in (90, 99)),
        *(f"{statistics.median(getattr(row, part) for row in rows):.0f}" for part in PARTS),
        f"{statistics.median(row.answer_us for row in rows):.0f}",
        f"{whole:.0f}",
        f"{whole / middle:.0f}x",
    )


PARTS = ("read_us", "prompt_us", "send_us")


def report(rows: Sequence[Row]) -> str:
    """Turns by context, without first turns, which bring all of it."""
    later = [row for row in rows if row.effort != "whole"]
    edges = sorted({row.prompt_tokens // 25_000 for row in later})
    lines: list[tuple[str, ...]] = [COLUMNS]
    for edge in edges:
        within = [row for row in later if row.prompt_tokens // 25_000 == edge]
        lines.append(cells(f"{edge * 25}k-{edge * 25 + 25}k", within))
    # Around the median turn of coding agents: 728 new tokens on 122k.
    median = [row for row in later if 600 <= row.new_tokens <= 900 and row.prompt_tokens >= 100_000]
    lines += [cells("100k+, 600-900 new", median)] if median else []
    lines.append(cells("all", later))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    efforts = {
        effort: sum(row.effort == effort for row in rows) for effort in ("whole", "compared", "appended")
    }
    return "\n".join([*table, ", ".join(f"{count} turns {effort}" for effort, count in efforts.items())])


async def play(options: argparse.Namespace, plane: TextPlane) -> list[Row]:
    bench = Bench(plane, options.repeats, DIALECTS[options.dialect])
    if options.sessions is not None:
        sessions = recorded(options.sessions, options.tokens_least, options.count)
    else:
        sessions = drawn(options.count, options.characters, options.turns, options.seed)
    return [
        row
        for session in sessions
        async for row in bench.play(session, options.whole_every, options.context_least)
    ]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; print a table, write JSON if asked. Return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("model", nargs="?", type=Path, default=BUNDLED, help="a model directory (the bundled one)")
    add("--dialect", choices=DIALECTS, default="chat", help="the API that sessions are sent to")
    add("--sessions", type=Path, help="recorded sessions, JSON lines, gzip")
    add("--tokens-least", type=int, default=100_000, help="recorded sessions to take: as long as this")
    add("--context-least", type=int, default=0, help="turns to report: prompts as long as this")
    add("--count", type=int, default=4, help="how many sessions")
    add("--characters", type=int, default=400_000, help="of a drawn session's first turn")
    add("--turns", type=int, default=30, help="of a drawn session")
    add("--whole-every", type=int, default=10, help="turns between two that are also made the whole way")
    add("--repeats", type=int, default=3, help="times each turn is made; the least is reported")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="write raw rows to this file")
    options = parser.parse_args(argv)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    rows = asyncio.run(play(options, TextPlane.load(options.model)))
    print(report(rows))
    if options.out:
        config = {
            name: value for name, value in vars(options).items() if name not in ("out", "model", "sessions")
        }
        record = {
            "benchmark": "turns",
            "commit": commit(),
            "machine": asdict(machine()),
            "started_at": started_at,
            "model": options.model.name,
            "sessions": "drawn" if options.sessions is None else options.sessions.name,
            "config": config,
            "rows": [asdict(row) for row in rows],
        }
        options.out.write_bytes(msgspec.json.encode(record) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
