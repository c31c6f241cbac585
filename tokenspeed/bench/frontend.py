# SPDX-License-Identifier: MIT
"""What does everything around the model cost? CPU time of text, HTTP, wire and control plane, by process.

In: options of the command line. Out: a table, and with `--out` the raw rows as JSON. Starts `tokenspeed serve
--device null`, whose steps take a constant time and compute nothing, and drives it over loopback HTTP as agents
do: all sessions at once, each turn re-sends its whole history and adds a few hundred tokens. Levels of context
length follow one another, each with sessions of its own, by token ids and by messages (real text through
template and tokenizer). Per level there are two rows: the first turns, which bring the context, and the later
ones, which should cost what is new and not what is old; the last lines say how far they do.

CPU times are the server's own (`tokenspeed_cpu_seconds_total`), all threads of a process; this client's are not
in them. Times to the first event are this client's, on a machine that it shares with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tokenspeed.base.clock import Clock, MonotonicClock
from tokenspeed.base.errors import SetupError
from tokenspeed.bench.agentic import ask_server
from tokenspeed.bench.client import Connection, Origin
from tokenspeed.bench.conversation import Conversation, Ids, Turn, Vocabulary
from tokenspeed.bench.dialect import TAPES, Answer, Ask, Tape, refusal
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.bench.served import serving

APIS: Final = ("completions", "chat")
ROOM: Final = 1.1
"""Longest context asked of the server over what is sent: drawn text is as long as wanted within a few percent."""
SAMPLE_CHARACTERS: Final = 20_000
SETTLE_S: Final = 0.3
"""The core speaks of itself every quarter second."""
SETTLE_TRIES: Final = 100
WARM_UP_TOKENS: Final = 1000
CONTEXT_TOKENS_LEAST: Final = 256
NO_IDS: Final[Ids] = np.empty(0, np.int32)

_STEMS: Final = re.findall(
    r"\w+",
    "cache index token block table request batch step row plan lease pool tree arena kernel head layer "
    "weight query value scale norm rank mesh shard buffer cursor parse render encode stream reader writer "
    "queue clock error config option field record report sample trace state event result prompt answer",
)
_LINES: Final = (
    "    {0} = self.{1}({2}, {3})\n",
    "    if {0} is None and {1}[{4}] > {2}:\n",
    '        raise ValueError(f"{0}: {{{1}}} is not {2}")\n',
    "def {0}({1}: int, {2}: str) -> None:\n",
    "    for {0}, {1} in zip({2}, {3}, strict=True):\n",
    "        {0}.{1}[{2}] += {4}\n",
    "    return [{0}.{1} for {0} in {2}]\n",
    "# {0} holds {1} until {2} is done; see {3}\n",
)


def source_text(dice: random.Random, characters: int) -> str:
    """Lines that look like Python, about that long: identifiers vary, as a tokenizer's caches expect."""
    lines: list[str] = []
    length = 0
    while length < characters:
        names = [f"{dice.choice(_STEMS)}_{dice.choice(_STEMS)}" for _ in range(4)]
        lines.append(dice.choice(_LINES).format(*names, dice.randrange(10_000)))
        length += len(lines[-1])
    return "".join(lines)


@dataclass(frozen=True, slots=True)
class Call:
    """One answered request; tokens as the server counted them."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_us: int
    """From the request's last byte sent to the first event of its answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One phase of one level."""

    api: str
    phase: str
    """first, or later."""
    context_tokens: int
    """Asked for; the prompts' true lengths are in `calls`."""
    calls: tuple[Call, ...]
    new_tokens: int
    """Prompt tokens that no earlier request of the session held, and output tokens."""
    steps: int
    api_us: int
    """CPU time of the API process."""
    core_us: int
    """CPU time of the core process."""

    @property
    def first_ms(self) -> tuple[float, float]:
        """Median and 95th percentile of the time to the first event."""
        times = sorted(call.first_us / 1000 for call in self.calls)
        return statistics.median(times), times[-(-95 * len(times) // 100) - 1]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server says of itself."""

    api_us: int
    core_us: int
    steps: int
    output_tokens: int

    @classmethod
    def of(cls, page: str) -> Reading:
        """Read a page of metrics; what it does not say counts 0, as the core's part does before it has spoken."""

        def value(series: str) -> float:
            found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
            return float(found[1]) if found else 0.0

        return cls(
            api_us=round(value('tokenspeed_cpu_seconds_total{process="api"}') * 1e6),
            core_us=round(value('tokenspeed_cpu_seconds_total{process="core"}') * 1e6),
            steps=round(value("tokenspeed_step_seconds_count")),
            output_tokens=round(value("tokenspeed_output_tokens_total")),
        )


NOTHING: Final = Reading(0, 0, 0, 0)


class Session:
    """One agent: its history on the way to the server, and its calls so far."""

    def __init__(self, connection: Connection, ask: Ask, api: str, conversation: Conversation) -> None:
        self.calls: list[Call] = []
        self._connection = connection
        self._ask = ask
        self._tape: Tape = TAPES[api](conversation)
        self._turns = iter(conversation.turns)

    async def play(self, turns: int) -> None:
        """Send that many turns, each as soon as the answer before it is whole."""
        for _ in range(turns):
            turn = next(self._turns)
            self._tape.turn(turn)
            body = self._tape.body(self._ask, turn)
            reply = await self._connection.exchange("POST", self._tape.path, body)
            answer = self._tape.read(reply)
            if answer.error:
                raise SetupError(f"the server failed a request of the benchmark: {answer.error}")
            if answer.output_tokens != turn.answer_tokens:
                raise SetupError(f"{answer.output_tokens} tokens came, {turn.answer_tokens} were asked for")
            self._tape.answer(np.array(answer.ids or (), np.int32), answer.text)
            self.calls.append(_call(answer, reply.sent_us))


def _call(answer: Answer, sent_us: int) -> Call:
    return Call(
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens or 0,
        output_tokens=answer.output_tokens,
        first_us=answer.times_us[0] - sent_us,
    )


def new_tokens(calls: Sequence[Call], begin: int) -> int:
    """Of one session's calls from `begin` on: prompt tokens not sent or said before, and output tokens."""
    known = 0
    total = 0
    for index, call in enumerate(calls):
        if index >= begin:
            total += call.prompt_tokens - known + call.output_tokens
        known = call.prompt_tokens + call.output_tokens
    return total


@dataclass(frozen=True, slots=True)
class Author:
    """Writes what sessions say: ids of the vocabulary, or text of about as many tokens. Equal keys, equal content."""

    vocabulary: Vocabulary
    characters_per_token: float
    seed: int

    def turn(self, api: str, tokens: int, answer_tokens: int, *key: int) -> Turn:
        if api == "completions":
            return Turn(self.vocabulary.draw(tokens, self.seed, *key), answer_tokens)
        dice = random.Random(repr((self.seed, *key)))
        text = source_text(dice, round(tokens * self.characters_per_token))
        return Turn(NO_IDS, answer_tokens, texts=(text,))


class Bench:
    """A server under measurement."""

    def __init__(self, url: str, clock: Clock, options: argparse.Namespace) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "tokenspeed-bench"}
        self._connect = partial(Connection, Origin.parse(url), clock, headers=headers)
        self._control = self._connect()
        self._options = options
        self._read = NOTHING

    async def run(self) -> tuple[dict[str, Any], list[Row]]:
        """Play all levels; (what the server says of itself, the rows)."""
        server = await ask_server(self._control, None)
        if server.vocab is None:
            raise SetupError("the server does not say how large its vocabulary is")
        author = Author(Vocabulary(server.vocab), await self._characters_per_token(), self._options.seed)
        rows: list[Row] = []
        for api in self._options.api:
            await self._play(self._sessions(Ask(server.model), author, api, WARM_UP_TOKENS), 1)
            for context_tokens in self._options.contexts:
                sessions = self._sessions(Ask(server.model), author, api, context_tokens)
                rows.append(await self._phase(sessions, api, "first", context_tokens, 1))
                rows.append(await self._phase(sessions, api, "later", context_tokens, self._options.turns))
        return server.facts, rows

    def _sessions(self, ask: Ask, author: Author, api: str, context_tokens: int) -> list[Session]:
        options = self._options
        lengths = [context_tokens] + [options.turn_tokens] * options.turns
        sessions: list[Session] = []
        for index in range(options.sessions):
            key = (APIS.index(api), context_tokens, index)
            turns = tuple(
                author.turn(api, tokens, options.answer_tokens, *key, turn)
                for turn, tokens in enumerate(lengths)
            )
            conversation = Conversation(f"{api}-{context_tokens}-{index}", turns)
            sessions.append(Session(self._connect(), ask, api, conversation))
        return sessions

    async def _phase(
        self, sessions: Sequence[Session], api: str, phase: str, context_tokens: int, turns: int
    ) -> Row:
        begin = len(sessions[0].calls)
        if sys.stderr.isatty():
            print(f"\r{api} {context_tokens} {phase}\033[K", end="", file=sys.stderr, flush=True)
        before, after = await self._play(sessions, turns)
        return Row(
            api=api,
            phase=phase,
            context_tokens=context_tokens,
            calls=tuple(call for session in sessions for call in session.calls[begin:]),
            new_tokens=sum(new_tokens(session.calls, begin) for session in sessions),
            steps=after.steps - before.steps,
            api_us=after.api_us - before.api_us,
            core_us=after.core_us - before.core_us,
        )

    async def _play(self, sessions: Sequence[Session], turns: int) -> tuple[Reading, Reading]:
        """All sessions at once; what the server said before and after."""
        before = self._read
        await asyncio.gather(*(session.play(turns) for session in sessions))
        answered = len(sessions) * turns * self._options.answer_tokens
        self._read = await self._settled(before.output_tokens + answered)
        return before, self._read

    async def _settled(self, output_tokens: int) -> Reading:
        """What the server says once it has counted that many tokens."""
        for _ in range(SETTLE_TRIES):
            await asyncio.sleep(SETTLE_S)
            page = await self._control.exchange("GET", "/metrics")
            reading = Reading.of(page.body.decode())
            if reading.core_us and reading.output_tokens >= output_tokens:
                return reading
        raise SetupError(
            f"/metrics does not come to {output_tokens} output tokens and the CPU time of a core"
        )

    async def _characters_per_token(self) -> float:
        text = source_text(random.Random(0), SAMPLE_CHARACTERS)
        reply = await self._control.exchange("POST", "/tokenize", msgspec.json.encode({"prompt": text}))
        if reply.status != 200:
            raise SetupError(f"/tokenize: {refusal(reply)}")
        return len(text) / msgspec.json.decode(reply.body)["count"]


def growth(rows: Sequence[Row], api: str) -> tuple[float, float] | None:
    """Microseconds that a later turn costs more per 1,000 tokens of context, in the API process and the core.

    None where fewer than two lengths were measured.
    """
    later = [row for row in rows if row.api == api and row.phase == "later"]
    if len(later) < 2:
        return None
    contexts = [statistics.fmean(call.prompt_tokens for call in row.calls) / 1000 for row in later]
    of_api = statistics.linear_regression(contexts, [row.api_us / len(row.calls) for row in later]).slope
    of_core = statistics.linear_regression(contexts, [row.core_us / len(row.calls) for row in later]).slope
    return of_api, of_core


COLUMNS: Final = (
    "route", "turns", "context", "requests", "hit", "API us/request", "/new token", "core us/request",
    "/new token", "/step", "first event p50 ms", "p95",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    count = len(row.calls)
    prompt = sum(call.prompt_tokens for call in row.calls)
    cached = sum(call.cached_tokens for call in row.calls)
    median_ms, late_ms = row.first_ms
    return (
        row.api,
        row.phase,
        f"{prompt / count / 1000:.1f}k",
        f"{count}",
        f"{cached / prompt:.1%}",
        f"{row.api_us / count:,.0f}",
        f"{row.api_us / row.new_tokens:.1f}",
        f"{row.core_us / count:,.0f}",
        f"{row.core_us / row.new_tokens:.1f}",
        f"{row.core_us / row.steps:.0f}",
        f"{median_ms:.0f}",
        f"{late_ms:.0f}",
    )


def report(rows: Sequence[Row]) -> str:
    """The table, and how a later turn grows with its context."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*table, *growth_lines(rows)])


def growth_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence a route."""
    for api in dict.fromkeys(row.api for row in rows):
        if (slopes := growth(rows, api)) is not None:
            yield (
                f"{api}: a later turn costs {slopes[0]:+.0f} us of API process and {slopes[1]:+.0f} us of core "
                "more per 1,000 tokens of context (0 where it costs what is new alone)"
            )


def _scaled(options: argparse.Namespace) -> argparse.Namespace:
    contexts = [max(CONTEXT_TOKENS_LEAST, round(context * options.scale)) for context in options.contexts]
    return argparse.Namespace(**vars(options) | {"contexts": contexts})


def _serve_options(options: argparse.Namespace) -> Iterator[str]:
    turns_tokens = options.turns * (options.turn_tokens + options.answer_tokens) + options.answer_tokens
    context_tokens = round(ROOM * (max(options.contexts) + turns_tokens)) + CONTEXT_TOKENS_LEAST
    if options.model:
        yield options.model
    yield from ("--device", "null", "--log-level", "error")
    yield from ("--max-model-len", str(context_tokens), "--rows-max", str(options.sessions))


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers above 0")
    return [int(word) for word in words]


def _apis(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(APIS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(APIS)}")
    return text.split(",")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed bench frontend", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("model", nargs="?", help="whose tokenizer and template to use; the bundled model's when absent")
    add("--sessions", type=int, default=16, help="agents at once (default 16)")
    add("--contexts", type=_counts, default=[50_000, 100_000, 150_000], help="tokens of the first turns")
    add("--turns", type=int, default=4, help="later turns of a session (default 4)")
    add("--turn-tokens", type=int, default=400, help="tokens a later turn adds (default 400)")
    add("--answer-tokens", type=int, default=64, help="tokens of an answer (default 64)")
    add("--api", type=_apis, default=list(APIS), help="completions (token ids), chat (messages), or both")
    add("--scale", type=float, default=1.0, help="share of the contexts, such as 0.02")
    add("--seed", type=int, default=0, help="seed of all content")
    add("--out", type=Path, help="write raw rows to this file")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; print a table, write JSON if asked. Return 0."""
    options = _scaled(_parser().parse_args(argv))
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with serving(*_serve_options(options)) as url:
        server, rows = asyncio.run(Bench(url, MonotonicClock(), options).run())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(report(rows))
    if options.out:
        record = {
            "benchmark": "frontend",
            "commit": commit(),
            "machine": asdict(machine()),
            "started_at": started_at,
            "seed": options.seed,
            "config": {name: value for name, value in vars(options).items() if name != "out"},
            "server": server,
            "rows": [asdict(row) for row in rows],
        }
        options.out.write_bytes(msgspec.json.encode(record) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
