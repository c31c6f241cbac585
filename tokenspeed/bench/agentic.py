# SPDX-License-Identifier: MIT
"""What does a server give coding agents? Tokens per GPU-minute above a floor of speed for every user.

In: a URL, a workload, levels, floors. Out: a table, and with `--out` one JSON with every request's times. It
knows the server by HTTP alone, so the same command measures any OpenAI-compatible engine. Each level and repeat
has conversations of its own and a warm-up that is not measured. Status 1 means that a level failed a check;
a floor nobody reached is a result, not a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from tokenizers import Tokenizer

from tokenspeed.base.clock import Clock, MonotonicClock
from tokenspeed.base.errors import SetupError
from tokenspeed.bench import record, workloads
from tokenspeed.bench.client import Connection, Origin
from tokenspeed.bench.conversation import Conversation, Encode, Turn, Vocabulary, hashed_pieces
from tokenspeed.bench.dialect import TAPES, Ask, CompletionsTape, refusal
from tokenspeed.bench.drive import Target, play_closed, play_open
from tokenspeed.bench.occupancy import sample
from tokenspeed.bench.provenance import commit
from tokenspeed.bench.pulse import Pulse
from tokenspeed.bench.record import Level, Result, Row
from tokenspeed.bench.table import level_table

WARM_UP: Final = 1 << 31
"""Part of the key of conversations that are not measured."""
WARM_UP_TURNS: Final = 2
LIVE_S: Final = 10.0
LIVE_CALLS: Final = 16
PROBE_TOKENS: Final = 4
BLOCK_TOKENS: Final = 16
"""Of a server that does not say how it reuses."""


class Progress:
    """One line on a terminal: the level, tokens per second and user of the last calls, tokens per minute."""

    def __init__(self, clock: Clock, title: str, turns: int) -> None:
        self._clock = clock
        self._title = title
        self._turns = turns
        self._done = self._failed = 0
        self._speeds: deque[float] = deque(maxlen=LIVE_CALLS)
        self._events: deque[tuple[int, int]] = deque()
        self._began_us = clock.now_us()

    def piece(self, data: bytes) -> None:
        self._events.append((self._clock.now_us(), data.count(b"data:")))

    def call(self, row: Row) -> None:
        self._done += 1
        self._failed += row.error is not None
        if (speed := row.user_tps) is not None:
            self._speeds.append(speed)

    def line(self) -> str:
        now_us = self._clock.now_us()
        while self._events and self._events[0][0] < now_us - LIVE_S * 1e6:
            self._events.popleft()
        seconds = max(0.5, min(LIVE_S, (now_us - self._began_us) / 1e6))
        tpm = sum(count for _, count in self._events) * 60 / seconds
        speed = sum(self._speeds) / len(self._speeds) if self._speeds else 0.0
        share = min(1.0, self._done / self._turns)
        bar = "#" * round(20 * share) + "." * (20 - round(20 * share))
        counts = f"{self._done}/{self._turns} turns" + (f", {self._failed} failed" if self._failed else "")
        return f"{self._title} [{bar}] {counts}  {speed:.1f} tps/user  {tpm:,.0f} TPM"

    async def show(self) -> None:
        """Redraw the line until cancelled."""
        try:
            while True:
                print(f"\r{self.line()}\033[K", end="", file=sys.stderr, flush=True)
                await asyncio.sleep(0.5)
        finally:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    model: str
    vocab: int | None
    context_tokens: int | None
    block_tokens: int | None
    facts: dict[str, Any]


async def ask_server(connection: Connection, model: str | None) -> Server:
    """Read `/v1/models`. Raises `SetupError` when it cannot be had or does not list the model."""
    reply = await connection.exchange("GET", "/v1/models")
    if reply.status != 200:
        raise SetupError(f"--url: GET /v1/models: {reply.error or refusal(reply)}")
    try:
        cards: list[dict[str, Any]] = msgspec.json.decode(reply.body)["data"]
        card = next(card for card in cards if model in (None, card["id"]))
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise SetupError(f"--url: GET /v1/models is not a list of models: {error}") from error
    except StopIteration as error:
        raise SetupError(f"--model {model}: the server does not list it") from error
    meta: dict[str, Any] = card.get("meta") or {}
    facts = card | ({"server": reply.headers["server"]} if "server" in reply.headers else {})
    return Server(
        model=card["id"],
        vocab=card.get("vocab_size") or meta.get("n_vocab"),
        context_tokens=card.get("max_model_len") or meta.get("n_ctx"),
        block_tokens=card.get("block_tokens"),
        facts=facts,
    )


async def probe_replay(connection: Connection, ask: Ask, vocabulary: Vocabulary) -> bool:
    """Ask for a forced answer; true when exactly that comes back, id for id."""
    ids = vocabulary.draw(2 * PROBE_TOKENS, WARM_UP)
    turn = Turn(ids[:PROBE_TOKENS], PROBE_TOKENS, answer=ids[PROBE_TOKENS:])
    tape = CompletionsTape(Conversation("probe", (turn,)))
    tape.turn(turn)
    answer = tape.read(await connection.exchange("POST", tape.path, tape.body(ask, turn)))
    return answer.error is None and answer.ids == ids[PROBE_TOKENS:].tolist()


async def run(options: argparse.Namespace, clock: Clock) -> Result:
    """Measure all levels; returns the result, raises `SetupError` when the server cannot be measured."""
    headers = {"Content-Type": "application/json", "User-Agent": "tokenspeed-bench"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    origin = Origin.parse(options.url)
    connect = partial(_connect, origin, clock, headers, options.timeout)
    connection = connect(lambda data: None)
    server = await ask_server(connection, options.model)
    size = options.vocab or server.vocab
    if not size:
        raise SetupError("the server does not say how large its vocabulary is; give it with --vocab")
    vocabulary = Vocabulary(size)
    ask = Ask(server.model, options.temperature, options.plain)
    replays = options.workload in ("h1a", "h1b") and options.api != "chat"
    if replays and options.api == "completions" and not options.plain:
        ask = replace(ask, forced=await probe_replay(connection, replace(ask, forced=True), vocabulary))
    connection.close()
    shape = workloads.Options(
        vocabulary=vocabulary,
        encode=_encoder(options.tokenizer, vocabulary),
        data=options.data,
        scale=options.scale,
        think_scale=options.think_scale,
        turns_max=options.turns_max,
        seed=options.seed,
    )
    random = np.random.default_rng((options.seed, WARM_UP))
    filler = lambda count: random.integers(vocabulary.low, vocabulary.high, count, dtype=np.int32)  # noqa: E731
    block_tokens = options.block_tokens or server.block_tokens or BLOCK_TOKENS
    target = Target(connect, clock, ask, options.api, block_tokens, filler)
    workload = workloads.build(options.workload, shape)
    open_loop = options.workload == "h2"
    loads = options.rates if open_loop else options.concurrency
    context_tokens = options.context or server.context_tokens
    levels: list[Level] = []
    for repeat in range(options.repeats):
        for index, load in enumerate(loads):
            title = f"{options.workload} {load:g} ({repeat + 1}/{options.repeats})"
            await _warm_up(target, workload, load, (index, repeat), context_tokens)
            made = workload.conversations(load, options.conversations, index, repeat)
            levels.append(await _level(target, made, load, repeat, context_tokens, title, open_loop))
    return Result(
        name=options.name or server.model,
        workload=options.workload,
        commit=commit(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=options.seed,
        device=options.device or str(server.facts.get("device", "not stated")),
        gpus=options.gpus,
        config=dict(_config(options))
        | {"vocab": size, "context": context_tokens, "block_tokens": block_tokens},
        server=server.facts,
        answers=_answers(ask, replays, options.api, levels),
        levels=tuple(levels),
        floors=tuple(options.floors),
    )


def _connect(
    origin: Origin, clock: Clock, headers: dict[str, str], timeout_s: float, watch: Callable[[bytes], None]
) -> Connection:
    return Connection(origin, clock, headers=headers, timeout_s=timeout_s, watch=watch)


def _encoder(tokenizer: Path | None, vocabulary: Vocabulary) -> Encode:
    if tokenizer is None:
        return hashed_pieces(vocabulary)
    if not tokenizer.is_file():
        raise SetupError(f"--tokenizer {tokenizer}: no such file; a model's tokenizer.json is meant")
    loaded = Tokenizer.from_file(str(tokenizer))
    if loaded.get_vocab_size() > vocabulary.size:
        raise SetupError(
            f"--tokenizer {tokenizer}: makes {loaded.get_vocab_size()} ids, the model knows {vocabulary.size}"
        )
    return lambda text: np.array(loaded.encode(text, add_special_tokens=False).ids, np.int32)


def _answers(ask: Ask, replays: bool, api: str, levels: Sequence[Level]) -> str:
    if replays:
        return "forced" if ask.forced else "recorded"
    rows = [row for level in levels for row in level.rows if not row.error]
    return "real" if api == "chat" or all(row.event_tokens is not None for row in rows) else "filler"


async def _warm_up(
    target: Target,
    workload: workloads.Workload,
    load: float,
    key: tuple[int, int],
    context_tokens: int | None,
) -> None:
    conversation = workload.conversations(load, 1, *key, WARM_UP)[0]
    conversation = replace(conversation, turns=conversation.turns[:WARM_UP_TURNS]).within(context_tokens)[0]
    turns = tuple(replace(turn, think_us=0) for turn in conversation.turns)
    if not turns:
        return
    progress = Progress(target.clock, "warm-up", len(turns))
    played = await play_closed(target, [replace(conversation, turns=turns)], 1, progress)
    if played.rows[-1].error:
        raise SetupError(f"the warm-up failed: {played.rows[-1].error}")


async def _level(
    target: Target,
    made: Sequence[Conversation],
    load: float,
    repeat: int,
    context_tokens: int | None,
    title: str,
    open_loop: bool,
) -> Level:
    cut = [conversation.within(context_tokens) for conversation in made]
    conversations = [conversation for conversation, _ in cut if conversation.turns]
    if not conversations:
        first, whole = (
            min(sum(len(turn.ids) + turn.answer_tokens for turn in each.turns[:count]) for each in made)
            for count in (1, None)
        )
        raise SetupError(
            f"no conversation fits the context of {context_tokens} tokens: the shortest needs {first} for its "
            f"first turn, {whole} for all; give a smaller --scale, or a server with a longer context"
        )
    turns = sum(len(conversation.turns) for conversation in conversations)
    progress = Progress(target.clock, title, turns)
    samples: list[tuple[int, float]] = []
    pulse = Pulse(target.clock)
    beside = [
        asyncio.create_task(sample(target.connect(lambda data: None), target.clock, samples)),
        asyncio.create_task(pulse.beat()),
    ]
    if sys.stderr.isatty():
        beside.append(asyncio.create_task(progress.show()))
    try:
        if open_loop:
            played = await play_open(target, conversations, progress)
        else:
            played = await play_closed(target, conversations, int(load), progress)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
    print(progress.line(), file=sys.stderr)
    return Level(
        load=load,
        repeat=repeat,
        rows=played.rows,
        left_out=sum(left for _, left in cut),
        occupancy=tuple((at_us - played.began_us, share) for at_us, share in samples),
        client_late_us=pulse.late_us,
    )


def _config(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    for name, value in vars(options).items():
        if name not in ("api_key", "out"):
            yield name, str(value) if isinstance(value, Path) else value


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _counts(text: str) -> list[int]:
    return [_count(word) for word in text.split(",")]


def _positives(text: str) -> list[float]:
    return [_positive(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed bench agentic", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add(
        "--workload",
        choices=workloads.NAMES,
        default="h0",
        help="h0: fixed shape; h1a, h1b: sessions; h2: trace",
    )
    add("--url", default="http://127.0.0.1:8000", help="where the server listens")
    add("--model", help="the model to ask for; the first listed when absent")
    add(
        "--api",
        choices=tuple(TAPES),
        default="completions",
        help="token ids, messages, or token ids on llama.cpp's own route",
    )
    add("--api-key", help="sent as a bearer token")
    add("--concurrency", type=_counts, default=[1, 2, 4, 8, 16], help="users at once, a level each")
    add("--rates", type=_positives, default=[1.0, 2.0, 4.0], help="requests per second, a level each (h2)")
    add(
        "--floors", type=_positives, default=[70.0, 100.0, 200.0], help="tokens per second promised to a user"
    )
    add(
        "--conversations", type=_count, help="conversations of a level; the workload's own number when absent"
    )
    add("--turns-max", type=_count, help="cut conversations after this many turns")
    add("--data", type=Path, help="folder of the recorded traces; drawn from the seed when absent")
    add("--tokenizer", type=Path, help="tokenizer.json for recorded texts; hashed pieces when absent")
    add("--scale", type=_positive, default=1.0, help="share of all lengths, such as 0.125")
    add("--think-scale", type=float, default=1.0, help="share of the recorded waits (h1b)")
    add("--repeats", type=_count, default=1, help="times to measure each level; a claim needs three")
    add("--seed", type=_natural, default=0, help="seed of every prompt")
    add("--vocab", type=_count, help="ids the model knows; asked of the server when absent")
    add("--context", type=_count, help="longest prompt and answer; asked of the server when absent")
    add("--block-tokens", type=_count, help="it reuses prefixes in blocks of this size; asked of it, else 16")
    add("--temperature", type=float, default=0.0, help="temperature of sampling")
    add("--plain", action="store_true", help="send OpenAI's own fields only")
    add("--timeout", type=_positive, default=600.0, help="seconds a request may take")
    add("--device", help="the device, in words; asked of the server when absent")
    add("--gpus", type=_count, default=1, help="devices the server uses")
    add("--name", help="what to call this run in reports; the model when absent")
    add("--out", type=Path, help="write the result to this file")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; print tables, write JSON if asked. Return 0, or 1 where a level failed a check."""
    options = _parser().parse_args(argv)
    result = asyncio.run(run(options, MonotonicClock()))
    if options.out:
        record.write(result, options.out)
    text, valid = level_table(result)
    print(text)
    return 0 if valid else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
