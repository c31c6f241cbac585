# SPDX-License-Identifier: MIT
"""The workloads h0, h1a, h1b and h2 as conversations, fresh for every level and repeat.

In: a shape, a scale, a vocabulary, a seed, the folder of traces or none. Out: `Conversation`s. Scale divides
all lengths alike; waits keep their length unless `think_scale` says otherwise. It sends nothing.

- h0: a first turn of 50,000 tokens, 800 more each turn, 10 to 15 turns, answers of exactly 500.
- h1a, h1b: real sessions, their recorded texts where the traces hold them, else by lengths and shared prefixes;
  the recorded answers to be forced; h1b waits as its tools and people did (at most 60 s and 120 s).
- h2: a trace in open loop, each request at its time, scaled to a mean rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import replay
from tokenspeed.bench.conversation import (
    NONCE_TOKENS,
    Conversation,
    Encode,
    Ids,
    Turn,
    Vocabulary,
    fitted,
    words,
)

NAMES: Final = ("h0", "h1a", "h1b", "h2")
FIRST_TOKENS: Final = 50_000
TURN_TOKENS: Final = 800
ANSWER_TOKENS: Final = 500
H0_TURNS: Final = (10, 15)
H0_CONVERSATIONS: Final = {1: 4, 2: 8, 4: 8, 8: 16, 16: 32}
"""Conversations of the published shape by concurrency; twice the concurrency elsewhere."""
SESSIONS_DRAWN: Final = 330
ARRIVALS: Final = 256
STAGGER_S: Final = 20.0
"""Sessions of h1b start within this time: they were not born together."""


class Workload(Protocol):
    """Makes conversations; the same arguments make the same ones."""

    def conversations(self, load: float, count: int | None, *key: int) -> list[Conversation]:
        """Those of one repeat of a level. `key` tells levels and repeats apart, `count` None is the shape's own."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What all workloads are made from."""

    vocabulary: Vocabulary
    encode: Encode
    data: Path | None
    scale: float
    think_scale: float
    turns_max: int | None
    seed: int

    def scaled(self, tokens: int) -> int:
        return max(1, round(tokens * self.scale))


def build(name: str, options: Options) -> Workload:
    """Make a workload by its name."""
    if not 0 < options.scale <= 1:
        raise SetupError(f"--scale {options.scale:g}: more than 0, at most 1")
    match name:
        case "h0":
            return _FixedShape(options)
        case "h1a" | "h1b":
            return _Replayed(options, thinks=name == "h1b")
        case "h2":
            return _Trace(options)
        case _:
            raise SetupError(f"--workload {name}: there are {', '.join(NAMES)}")


class _FixedShape:
    """h0."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._recorded: list[tuple[tuple[str, ...], ...]] = []
        if options.data is not None:
            file = "fixed_convs_6k" if options.scale <= 1 / 8 else "fixed_convs_50k"
            entries = replay.read_lines(options.data / "dev" / f"{file}.jsonl.gz")
            self._recorded = [
                tuple(tuple(message["content"] for message in turn) for turn in entry["turns"])
                for entry in entries
            ]

    def conversations(self, load: float, count: int | None, *key: int) -> list[Conversation]:
        count = count or H0_CONVERSATIONS.get(int(load), 2 * int(load))
        return [self._conversation(index, key) for index in range(count)]

    def _conversation(self, index: int, key: tuple[int, ...]) -> Conversation:
        options = self._options
        whole_key = (options.seed, *key, index)
        random = np.random.default_rng(whole_key)
        recorded = self._recorded[random.permutation(len(self._recorded))[0]] if self._recorded else None
        drawn = int(random.integers(H0_TURNS[0], H0_TURNS[1] + 1))
        count = min(len(recorded) if recorded else drawn, options.turns_max or H0_TURNS[1])
        turns: list[Turn] = []
        for turn in range(count):
            tokens = options.scaled(TURN_TOKENS if turn else FIRST_TOKENS)
            texts = recorded[turn] if recorded else None
            if texts:
                ids = fitted(options.encode("\n".join(texts)), tokens)
            else:
                ids = options.vocabulary.draw(tokens, *whole_key, turn)
            if turn == 0:
                nonce = options.vocabulary.draw(NONCE_TOKENS, *whole_key)
                ids = np.concatenate([nonce, ids])[:tokens]
                texts = texts and (words(nonce), *texts)
            turns.append(Turn(ids, options.scaled(ANSWER_TOKENS), texts=texts))
        return Conversation(f"h0-{index}", tuple(turns))


class _Replayed:
    """h1a and h1b."""

    def __init__(self, options: Options, *, thinks: bool) -> None:
        self._options = options
        self._thinks = thinks
        if options.data is None:
            self._sessions = replay.draw_sessions(options.seed, SESSIONS_DRAWN)
        else:
            self._sessions = replay.read_sessions(options.data)

    def conversations(self, load: float, count: int | None, *key: int) -> list[Conversation]:
        count = count or (int(load) if self._thinks else 2 * int(load))
        random = np.random.default_rng((self._options.seed, *key))
        order = random.permutation(len(self._sessions)).tolist()
        starts_s = random.random(count) * STAGGER_S
        conversations: list[Conversation] = []
        for index in range(count):
            # A session that comes round again gets other tokens: no conversation is sent twice.
            round_, place = divmod(index, len(order))
            start_s = float(starts_s[index]) if self._thinks else 0.0
            session = self._sessions[order[place]]
            conversations.append(self._conversation(session, start_s, (*key, round_)))
        return conversations

    def _conversation(self, session: replay.Session, start_s: float, key: tuple[int, ...]) -> Conversation:
        options = self._options
        calls = session.calls[: options.turns_max]
        stream = _Stream(options, key)
        speech = (
            _Drawn(stream, session, calls) if session.words is None else _Spoken(stream, session, options)
        )
        turns: list[Turn] = []
        done = 0
        for index, call in enumerate(calls):
            begin = max(stream.position(call.input_tokens), done + 1)
            after = max(stream.position(call.input_tokens + call.output_tokens), begin + 1)
            wait_s = start_s if index == 0 else replay.capped_gap_s(call) if self._thinks else 0.0
            ids, answer, texts = speech.call(index, done, begin, after)
            turns.append(
                Turn(
                    ids=ids,
                    answer_tokens=after - begin,
                    answer=answer,
                    think_us=round(wait_s * options.think_scale * 1e6),
                    texts=texts,
                )
            )
            done = after
        return Conversation(session.id, tuple(turns))


class _Drawn:
    """What a session says where only its chain of blocks is known: ids drawn by their names."""

    def __init__(self, stream: _Stream, session: replay.Session, calls: Sequence[replay.Call]) -> None:
        end = calls[-1].input_tokens + calls[-1].output_tokens
        self._ids = stream.ids(session.chain, end, session.id)

    def call(self, index: int, done: int, begin: int, after: int) -> tuple[Ids, Ids, None]:
        """The new ids of a prompt and its answer, which end at `begin` and `after` of the stream."""
        ids = self._ids
        if after > len(ids):
            ids = np.concatenate([ids, ids[: after - len(ids)]])
        return ids[done:begin], ids[begin:after], None


class _Spoken:
    """What a session said: its recorded texts, encoded, each cut or repeated to the recorded number of tokens.

    So lengths are those of the record whatever the tokenizer, and equal beginnings stay equal. Hidden system prompts
    were not recorded: drawn ids stand for them, and a nonce of the level heads a session without one.
    """

    def __init__(self, stream: _Stream, session: replay.Session, options: Options) -> None:
        assert session.words is not None
        self._words = session.words
        self._options = options
        blocks = session.chain[: session.hidden_tokens // replay.BLOCK_TOKENS]
        self._head = stream.ids(blocks, session.hidden_tokens, session.id) if blocks else stream.nonce()

    def call(self, index: int, done: int, begin: int, after: int) -> tuple[Ids, Ids, tuple[str, ...]]:
        """The new ids of a prompt, its answer, and for chat its messages."""
        said, encode = self._words[index], self._options.encode
        head = self._head[: begin - 1] if index == 0 else self._head[:0]
        ids = np.concatenate([head, fitted(encode(said.prompt), begin - done - len(head))])
        texts = tuple(text[: self._options.scaled(len(text))] for text in said.messages)
        answer = fitted(encode(said.answer), after - begin)
        return ids, answer, (words(head), *texts) if len(head) else texts


class _Trace:
    """h2."""

    def __init__(self, options: Options) -> None:
        self._options = options
        if options.data is None:
            self._arrivals = replay.draw_arrivals(options.seed, 8 * ARRIVALS)
        else:
            self._arrivals = replay.read_arrivals(options.data)

    def conversations(self, load: float, count: int | None, *key: int) -> list[Conversation]:
        arrivals = self._arrivals[: count or ARRIVALS]
        span_ms = arrivals[-1].at_ms - arrivals[0].at_ms
        wanted_us = len(arrivals) / load * 1e6
        stream = _Stream(self._options, key)
        known: set[int] = set()
        conversations: list[Conversation] = []
        for index, arrival in enumerate(arrivals):
            share = (arrival.at_ms - arrivals[0].at_ms) / span_ms if span_ms else index / len(arrivals)
            later = sum(block in known for block in arrival.blocks) * 2 > len(arrival.blocks)
            known.update(arrival.blocks)
            full = arrival.blocks[: arrival.input_tokens // replay.BLOCK_TOKENS]
            ids = stream.ids(full, arrival.input_tokens, f"{index}")
            turn = Turn(ids=ids, answer_tokens=self._options.scaled(arrival.output_tokens))
            conversations.append(Conversation(f"h2-{index}", (turn,), round(share * wanted_us), later))
        return conversations


class _Stream:
    """Token ids of a chain of blocks: equal names give equal ids within one key, and only within it."""

    def __init__(self, options: Options, key: Sequence[int]) -> None:
        self._vocabulary = options.vocabulary
        self._key = (options.seed, *key)
        self._block_tokens = options.scaled(replay.BLOCK_TOKENS)

    def position(self, tokens: int) -> int:
        """A position of the recorded stream, scaled."""
        return tokens * self._block_tokens // replay.BLOCK_TOKENS

    def nonce(self) -> Ids:
        """What makes this key's sessions unlike those of any other."""
        return self._vocabulary.draw(NONCE_TOKENS, *self._key, 3)

    def ids(self, chain: Sequence[int], tokens: int, name: str) -> Ids:
        """The scaled ids of a stream of `tokens`; what its chain does not cover is private to `name`."""
        blocks = [self._vocabulary.draw(self._block_tokens, *self._key, 1, block) for block in chain]
        rest = max(1, self.position(tokens)) - len(blocks) * self._block_tokens
        if rest > 0:
            private = (*self._key, 2, *name.encode())
            blocks.append(self._vocabulary.draw(rest, *private))
        return np.concatenate(blocks)[: max(1, self.position(tokens))]
