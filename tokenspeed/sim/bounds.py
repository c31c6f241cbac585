# SPDX-License-Identifier: MIT
"""What no cache can beat: a cache without end, and Belady's choice of what to drop, on a schedule as it was.

In: the turns of a `Record` in the order they ran, and their sessions. Out: prompt tokens found, by either. The
endless cache finds whatever was ever computed. Belady's knows the future: when it must drop, it drops what is
needed again last (never again: first), and never what a running turn holds. Both work on the names of 512
tokens that the trace gives, of which the last may be held in part; a last prompt token is never found, for it
has to be computed. Neither knows time, tiers or policies.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tokenspeed.sim.agents import Record, Turn
from tokenspeed.sim.sessions import CHAIN_TOKENS, Session

NEVER: Final = 1 << 62

Name = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Prompt tokens found of turns that were submitted after the warm-up, of `prompt_tokens`."""

    prompt_tokens: int
    endless_tokens: int
    belady_tokens: int


def bounds(record: Record, sessions: Sequence[Session], pool_tokens: int) -> Bounds:
    """Both bounds for the turns that ran in a run."""
    turns = sorted(
        (turn for turn in record.turns if turn.bound_us is not None), key=lambda t: (t.bound_us, t.request_id)
    )
    names = [list(_names(turn, sessions)) for turn in turns]
    endless = _endless(turns, names)
    belady = _belady(turns, names, pool_tokens)
    late = [i for i, turn in enumerate(turns) if turn.submit_us >= record.setting.warm_up_us]
    return Bounds(
        prompt_tokens=sum(turns[i].input_tokens for i in late),
        endless_tokens=sum(endless[i] for i in late),
        belady_tokens=sum(belady[i] for i in late),
    )


def _names(turn: Turn, sessions: Sequence[Session]) -> Iterator[tuple[Name, int, int]]:
    """The names a turn touches: (name, its tokens in the prompt, its tokens once the turn has ended)."""
    chain = sessions[turn.session_index].chain
    end = turn.input_tokens + turn.output_tokens - 1
    for index in range(-(-end // CHAIN_TOKENS)):
        begin = index * CHAIN_TOKENS
        prompt = min(max(turn.input_tokens - begin, 0), CHAIN_TOKENS)
        yield (turn.round_, int(chain[index])), prompt, min(end - begin, CHAIN_TOKENS)


def _endless(turns: Sequence[Turn], names: Sequence[list[tuple[Name, int, int]]]) -> list[int]:
    held: dict[Name, int] = {}
    found: list[int] = []
    for turn, touched in zip(turns, names, strict=True):
        found.append(_found(turn, touched, held))
        for name, _, tokens in touched:
            held[name] = max(held.get(name, 0), tokens)
    return found


def _found(turn: Turn, touched: list[tuple[Name, int, int]], held: dict[Name, int]) -> int:
    """The longest held prefix of a turn's prompt."""
    found = 0
    for name, prompt, _ in touched:
        have = min(held.get(name, 0), prompt)
        found += have
        if have < CHAIN_TOKENS:
            break
    return min(found, turn.input_tokens - 1)


def _belady(
    turns: Sequence[Turn], names: Sequence[list[tuple[Name, int, int]]], pool_tokens: int
) -> list[int]:
    """Tokens found by turn when the pool drops what is needed last."""
    uses: dict[Name, list[int]] = {}
    for i in range(len(turns) - 1, -1, -1):
        for name, _, _ in names[i]:
            uses.setdefault(name, []).append(i)
    held: dict[Name, int] = {}
    held_tokens = 0
    pins: dict[Name, int] = {}
    victims: list[tuple[int, int, Name]] = []  # (-next use, -depth, name); stale entries are skipped
    running: list[tuple[int, int]] = []  # (end_us, turn)
    found: list[int] = []

    def next_use(name: Name) -> int:
        return uses[name][-1] if uses[name] else NEVER

    def release(i: int) -> None:
        for depth, (name, _, _) in enumerate(names[i]):
            pins[name] -= 1
            if pins[name] == 0:
                heapq.heappush(victims, (-next_use(name), -depth, name))

    for i, turn in enumerate(turns):
        assert turn.bound_us is not None
        while running and running[0][0] <= turn.bound_us:
            release(heapq.heappop(running)[1])
        found.append(_found(turn, names[i], held))
        for name, _, tokens in names[i]:
            uses[name].pop()
            pins[name] = pins.get(name, 0) + 1
            held_tokens += max(tokens - held.get(name, 0), 0)
            held[name] = max(held.get(name, 0), tokens)
        while held_tokens > pool_tokens and victims:
            due, _, name = heapq.heappop(victims)
            if pins.get(name, 0) == 0 and name in held and -due == next_use(name):
                held_tokens -= held.pop(name)
        heapq.heappush(running, (NEVER if turn.end_us is None else turn.end_us, i))
    return found
