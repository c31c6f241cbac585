# SPDX-License-Identifier: MIT
"""Find a planted bug, take the journals of runs that met it, and shrink each to the calls that matter.

    python tests/sim/shrunk.py EXTENSION PLANT SEEDS

In: the extension built with TOKENSPEED_PLANTS and the number of a plant. Out: one line of JSON: the invariant that
broke, how many calls the journal held, and the calls that are left, in words, of the run that got shortest; null
where no seed breaks one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace as with_fields
from typing import Any

from mutant import load

TRIES = 8
CALLS_MAX = 150


def main(extension: str, plant: int, seeds: int) -> None:
    control = load(extension)
    control.plant(plant)

    from tokenspeed.control.log import header, read_log  # only now: they import the extension
    from tokenspeed.sim import replay, witness, world
    from tokenspeed.sim.search import quiet
    from tokenspeed.sim.workload import draw

    quiet()
    lives: list[Any] = []

    class Kept(witness.Witness):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            lives.append(self)

    world.Witness = Kept  # type: ignore[misc]

    def journaled(options: Any) -> Any:
        options_event = replay.Event("options", {}, text=options.text)
        return replay.options_of(replay.EventLog(options.seed, 0, (options_event,)))

    def broken(events: Sequence[Any]) -> str | None:
        """The invariant that a journal's calls break."""
        log = replay.EventLog(0, 0, tuple(events))
        options = replay.options_of(log)
        scheduler = control.Scheduler(options)
        feeder = replay.Feeder(scheduler, log.events, block_tokens=options.block_tokens)
        for event in feeder.inputs():
            try:
                feeder.feed(event)
                scheduler.check()
            except control.InvariantError as error:
                return str(error).split(":")[0]
            except ValueError:  # not one token per sampled row: the calls left do not fit together
                return None
        return None

    best: dict[str, Any] | None = None
    found = 0
    for seed in range(seeds):
        scenario = draw(seed)
        run = world.run(with_fields(scenario, options=journaled(scenario.options)))
        if run.law is None:
            continue
        part, before = lives[-1].take_journal()
        events = read_log(header(seed, before) + part).events
        law = broken(events)
        calls = sum(event.kind in replay.INPUTS for event in events)
        if law is None or calls > CALLS_MAX:
            continue  # seen from outside alone, or better met in a shorter life
        left = replay.shrink(events, lambda some, law=law: broken(some) == law)
        if best is None or len(left) < len(best["left"]):
            best = {"law": law, "seed": seed, "calls": calls, "left": [event.kind for event in left]}
        found += 1
        if found == TRIES:
            break
    print(json.dumps(best))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
