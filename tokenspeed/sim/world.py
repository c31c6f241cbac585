# SPDX-License-Identifier: MIT
"""One seed from beginning to end: the real desk and loop between clients, a watched scheduler and a
simulated executor.

In: a `Scenario`. Out: a `Run`, passed or with the law that broke. The clock is the world's own and moves
only when a step ends or everybody waits. Anything the code under test raises ends the seed, never the
simulator.
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass

from tokenspeed.base.clock import FakeClock
from tokenspeed.control import InvariantError
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import Loop
from tokenspeed.sim import model
from tokenspeed.sim.clients import Clients
from tokenspeed.sim.executor import SimExecutor
from tokenspeed.sim.trace import Trace
from tokenspeed.sim.violation import ViolationError
from tokenspeed.sim.witness import Witness
from tokenspeed.sim.workload import Scenario, stream


@dataclass(frozen=True, slots=True)
class Run:
    """What a seed did. `law` and `message` are None if it passed; `reached` counts what it exercised."""

    seed: int
    features: frozenset[str]
    law: str | None
    message: str | None
    reached: Counter[str]
    events: list[str]


def run(scenario: Scenario, *, aloud: bool = False) -> Run:
    """Live through a scenario."""
    clock = FakeClock()
    trace = Trace(clock, aloud=aloud)
    law = message = None
    try:
        _live(scenario, clock, trace)
    except ViolationError as violation:
        law, message = violation.law, str(violation)
    except InvariantError as error:
        law, message = "check", f"check: {error}"
    except BrokenPipeError:
        raise  # nobody reads the trace any more
    except Exception:  # noqa: BLE001 - whatever the code under test raises is a finding
        law, message = "crash", f"crash: {traceback.format_exc()}"
    return Run(scenario.seed, scenario.features, law, message, trace.reached, trace.lines())


def _live(scenario: Scenario, clock: FakeClock, trace: Trace) -> None:
    options = scenario.options
    trace.note("switched on: {}", ", ".join(sorted(scenario.features)) or "nothing")
    trace.note(
        "{} blocks of {} tokens, context {}",
        options.blocks_total,
        options.block_tokens,
        options.context_tokens_max,
    )
    trace.note(
        "{} slots, {} rows a step, {} tokens of which {} prefill",
        options.slots_max,
        options.rows_per_step_max,
        options.tokens_per_step_max,
        options.prefill_tokens_max,
    )
    clients = Clients(scenario, clock, trace)
    witness = Witness(
        options,
        clients.expectations,
        strange_chance=scenario.strange_chance,
        random=stream(scenario.seed, "strange"),
        trace=trace,
    )
    executor = SimExecutor(
        options,
        origin_of=clients.origin_of,
        faulted=clients.fault,
        clock=clock,
        cost=scenario.cost,
        random=stream(scenario.seed, "steps"),
        fault_chance=scenario.fault_chance,
        corrupt_chance=scenario.corrupt_chance,
        copy_us=scenario.copy_us,
        trace=trace,
    )
    desk = Desk(witness, vocab_size=model.VOCAB)
    loop = Loop(desk, executor, clients, clients, clock, overlap=options.overlap)
    loop.run()
    while loop.busy:
        loop.turn()  # copies between tiers come to their end
    if executor.flights:
        raise ViolationError("leak", f"{executor.flights} steps in flight at rest")
    witness.rest()
