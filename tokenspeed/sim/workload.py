# SPDX-License-Identifier: MIT
"""What happens in a seed's world: limits, prices, clients and accidents, drawn before it starts.

In: a seed, and what to leave out. Out: a `Scenario`, plain frozen values. Every seed switches each
`FEATURES` entry on or off by itself (swarm testing): a run that exercises everything at once reaches fewer
states than many that each exercise some things hard. Every session draws from its own stream, so leaving
one out, or switching a feature off, changes as little as possible of the rest: that is what makes shrinking
work.

Does not know the scheduler's state and does not react: `clients` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from tokenspeed.control import SchedulerOptions
from tokenspeed.sim import model
from tokenspeed.sim.cost import StepCost

FEATURES: Final[dict[str, str]] = {
    "overlap": "step n+1 is launched before step n is read",
    "prefix-cache": "finished history is reused",
    "turns": "a session sends its whole history again, with a little more",
    "forks": "several requests continue one history at the same time",
    "twins": "equal prompts arrive together",
    "salts": "tenants share prompts but must not share blocks",
    "stops": "stop ids end requests early",
    "minimums": "stop ids do not count before tokens_min",
    "cancels": "clients leave, at any moment",
    "strange-calls": "late, repeated and unknown results, cancels and request ids reach the control plane",
    "tight-pool": "blocks run out: prefixes are evicted, requests retracted",
    "talkative": "short prompts, long answers, so that requests outgrow what they were admitted with",
    "tight-steps": "few rows and tokens fit a step, prompts come in chunks",
    "tight-queue": "few requests may wait or run",
    "misfits": "prompts that are empty, too long or larger than the pool",
    "priorities": "some requests matter more",
    "faults": "some rows come out as not finite",
    "bursts": "everybody arrives at once",
    "flushes": "the prefix tree is emptied while requests run",
    "retention": "idle KV is kept by how likely its session is to come back",
    "tiers": "idle KV goes to the host and the disk, and comes back",
    "slow-copies": "copies between tiers take longer than steps, and some longer than a request waits",
    "corruption": "blocks found for a request turn out not to hold what was stored",
}
"""Switches of a world, and what each brings."""

SELDOM: Final = frozenset({"tight-queue", "talkative", "flushes"})
"""Features that keep others from being reached."""

TENANTS: Final = (b"", b"tenant-a", b"tenant-b")


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session, sent `gap_us` after the turn it continues has ended (or after the start)."""

    parent: int | None
    gap_us: int
    tokens: tuple[int, ...]  # appended to the parent's prompt and answer
    tokens_max: int
    tokens_min: int
    stop_after: int | None  # the answer's token at this index, had it run alone, is a stop id
    seed: int
    priority: int
    cancel_after_us: int | None
    cancel_after_tokens: int | None


@dataclass(frozen=True, slots=True)
class Session:
    """Turns of one client, of one tenant."""

    index: int
    salt: bytes
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole world."""

    seed: int
    features: frozenset[str]
    options: SchedulerOptions
    cost: StepCost
    sessions: tuple[Session, ...]
    flushes_us: tuple[int, ...]
    strange_chance: float  # that a call to the control plane is accompanied by one that means nothing
    fault_chance: float  # that a sampled row is not finite, that a copy fails
    corrupt_chance: float  # that a cached block of a newly bound request is corrupt
    copy_us: int


def stream(seed: int, name: str) -> Random:
    """A stream of random numbers of its own for each name."""
    return Random(f"{seed}/{name}")


def draw(
    seed: int, *, without: frozenset[str] = frozenset(), sessions: frozenset[int] | None = None
) -> Scenario:
    """The world of a seed; `without` names features to switch off, `sessions` the only sessions to keep."""
    random = stream(seed, "world")
    switched = {name for name in FEATURES if random.random() < (0.3 if name in SELDOM else 0.55)}
    features = frozenset(switched - without)
    options = _options(seed, features)
    system = tuple(
        random.randrange(model.VOCAB) for _ in range(random.randrange(3 * options.block_tokens + 2))
    )
    count = random.randint(1, 8)
    drawn = [_session(seed, index, features, options, system) for index in range(count)]
    flushes = tuple(random.randrange(200_000) for _ in range(3)) if "flushes" in features else ()
    return Scenario(
        seed=seed,
        features=features,
        options=options,
        cost=StepCost.draw(random),
        sessions=tuple(s for s in drawn if sessions is None or s.index in sessions),
        flushes_us=flushes,
        strange_chance=0.3 if "strange-calls" in features else 0.0,
        fault_chance=0.02 if "faults" in features else 0.0,
        corrupt_chance=0.1 if "corruption" in features else 0.0,
        copy_us=100_000 if "slow-copies" in features else 300,
    )


def _options(seed: int, features: frozenset[str]) -> SchedulerOptions:
    random = stream(seed, "options")
    block_tokens = random.choice((1, 2, 4, 4, 8, 16))
    context_tokens_max = random.randint(32, 160)
    context_blocks = -(-context_tokens_max // block_tokens)
    blocks_total = context_blocks * 12
    if "tight-pool" in features:
        blocks_total = max(2, int(context_blocks * random.choice((0.5, 0.7, 1.0, 1.5))))
    slots_max = random.randint(1, 3) if "tight-queue" in features else random.randint(4, 12)
    tight = "tight-steps" in features
    rows_per_step_max = random.randint(1, 4) if tight else slots_max
    tokens_per_step_max = rows_per_step_max + (random.randint(0, 20) if tight else random.randint(20, 250))
    lower = [blocks_total * random.choice((0, 1, 4)) for _ in range(2)] if "tiers" in features else [0, 0]
    return SchedulerOptions(
        blocks_total=blocks_total,
        block_tokens=block_tokens,
        slots_max=slots_max,
        tokens_per_step_max=tokens_per_step_max,
        rows_per_step_max=rows_per_step_max,
        prefill_tokens_max=random.randint(1, tokens_per_step_max),
        waiting_max=random.randint(1, 6) if "tight-queue" in features else 64,
        context_tokens_max=context_tokens_max,
        prefix_cache="prefix-cache" in features,
        overlap="overlap" in features,
        hash_key=random.randbytes(16),
        log_bytes=4096,
        seed=seed,
        retention="retention" in features,
        tiers="tiers" in features,
        host_blocks=lower[0],
        disk_blocks=lower[1],
        copies_per_step_max=random.choice((1, 4, 64)),
        copy_late_us=random.choice((10_000, 1_000_000)),
    )


def _session(
    seed: int, index: int, features: frozenset[str], options: SchedulerOptions, system: tuple[int, ...]
) -> Session:
    random = stream(seed, f"session {index}")
    salt = random.choice(TENANTS)
    shared = random.random() < 0.7
    sampling_seed = random.choice((1, 1, index + 2))
    turns: list[Turn] = []
    for number in range(random.randint(1, 4)):
        root = number == 0 or "turns" not in features
        parent = None if root else len(turns) - 1
        if not root and random.random() < 0.4 and "forks" in features:
            parent = random.randrange(len(turns))
        prefix = system if root and shared else ()
        turn = _turn(random, features, options, parent, prefix, sampling_seed)
        turns.append(turn)
        if random.random() < 0.3 and "twins" in features:
            turns.append(turn)
    return Session(index, salt if "salts" in features else b"", tuple(turns))


def _turn(
    random: Random,
    features: frozenset[str],
    options: SchedulerOptions,
    parent: int | None,
    prefix: tuple[int, ...],
    seed: int,
) -> Turn:
    length = random.choice((1, 2, 5, 12, 30)) + random.randrange(options.block_tokens)
    tokens_max = random.choice((1, 2, 4, 8, 16)) + random.randrange(3)
    if "talkative" in features:
        length, tokens_max = random.randint(1, 6), random.randint(8, 48)
    gap_us = 0 if "bursts" in features else random.choice((0, 3_000, 40_000))
    stop_after = random.randrange(2 * tokens_max)
    tokens_min = random.randint(0, tokens_max)
    cancel, cancel_us, cancel_tokens = (
        random.random(),
        random.randrange(60_000),
        random.randrange(tokens_max + 1),
    )
    misfit, misfit_tokens = random.random(), random.choice((0, 1, 2))
    priority = random.randint(-2, 2)
    if misfit < 0.1 and "misfits" in features:
        length = options.context_tokens_max * misfit_tokens
    if "cancels" not in features:
        cancel = 1.0
    return Turn(
        parent=parent,
        gap_us=gap_us,
        tokens=prefix + tuple(random.randrange(model.VOCAB) for _ in range(length)),
        tokens_max=tokens_max,
        tokens_min=tokens_min if "minimums" in features else 0,
        stop_after=stop_after if "stops" in features and stop_after < tokens_max else None,
        seed=seed,
        priority=priority if "priorities" in features else 0,
        cancel_after_us=cancel_us if cancel < 0.2 else None,
        cancel_after_tokens=cancel_tokens if 0.2 <= cancel < 0.4 else None,
    )
