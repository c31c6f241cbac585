# SPDX-License-Identifier: MIT
"""An executor without a device: it does to a model KV memory what a plan says, and objects to a wrong plan.

In: plans and binds, as the real executor gets them. Out: a token per sampled row, drawn from the
fingerprint of all the context that the row really read through its block table. State per slot: the table
as the deltas left it, the history as bound and sampled, and how much of it lies in KV. Steps take effect at
launch, as on a device stream; their tokens are seen at retire, and the clock moves to their end.

Checked at every launch, before anything is computed:
- I5 rows, tokens, prefill tokens, slots, blocks and context are within the limits; decode rows first, one
  token each;
- I6 a block written by a step in flight is not given to, read or written by another request, a block read
  by a step in flight is not written by another, and its slots are not bound again;
- I7 a row starts where its KV ends, carries the tokens of its history (or -1 for the one sampled last), is
  sampled exactly when it reaches the end, and writes slots that no other row writes;
- I9 retires come in launch order;
- memory: see `memory.py`; and nobody reads what a failed row of another request has written.

Whether the tokens are right is the oracle's question. Does not know the scheduler, nor which requests live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Plan, SchedulerOptions, Tier
from tokenspeed.exec.protocol import Reports, RowMasks, StepResult
from tokenspeed.sim import model
from tokenspeed.sim.cost import StepCost
from tokenspeed.sim.memory import Memory
from tokenspeed.sim.tiers import SimCopies
from tokenspeed.sim.trace import Trace
from tokenspeed.sim.violation import ViolationError

NO_BLOCK: Final = -1
LAST_SAMPLED: Final = -1
NOT_FINITE: Final = -1
SHARED: Final = -1  # in `Flight.reads`: more than one request reads this block


@dataclass(slots=True)
class Occupant:
    """What a slot holds: a request, its tokens as far as they exist on the device, and where its KV lies."""

    request_id: int
    seed: int
    prompt_tokens: int
    history: list[int]  # prompt, then what was sampled
    table: list[int]
    root: int = 0
    context: int = 0  # tokens of `history` whose KV is written
    has_sampled: bool = False  # in this slot, since it was bound


@dataclass(slots=True)
class Row:
    """One row of a plan, as plain ints."""

    occupant: Occupant
    start: int
    tokens: list[int]
    sampled: bool
    failed: bool = False  # not finite

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(slots=True)
class Flight:
    """A launched step: its sampled tokens, when they will be there, and the blocks it holds."""

    step: int
    end_us: int = 0
    corrupt: tuple[int, ...] = ()
    device_us: int = 0
    tokens: list[int] = field(default_factory=list)
    failed: dict[int, Row] = field(default_factory=dict)  # by place in the plan
    slots: frozenset[int] = frozenset()
    writes: dict[int, int] = field(default_factory=dict)  # block -> request id
    reads: dict[int, int] = field(default_factory=dict)  # block -> request id or SHARED


class SimExecutor:
    """`origin_of` gives the salt and the number of prompt tokens of a request, which the real executor has no
    need to know; `faulted` is told the request of each row that comes out as not finite, at its retire."""

    def __init__(
        self,
        limits: SchedulerOptions,
        *,
        origin_of: Callable[[int], tuple[bytes, int]],
        faulted: Callable[[int], None],
        clock: FakeClock,
        cost: StepCost,
        random: Random,
        fault_chance: float,
        corrupt_chance: float = 0.0,
        copy_us: int = 0,
        trace: Trace,
    ) -> None:
        self._limits = limits
        self._origin_of = origin_of
        self._faulted = faulted
        self._clock = clock
        self._cost = cost
        self._random = random
        self._fault_chance = fault_chance
        self._trace = trace
        self._corrupt_chance = corrupt_chance
        self._memory = Memory(limits.blocks_total, limits.block_tokens)
        memories = {
            int(Tier.DEVICE): self._memory,
            int(Tier.HOST): Memory(limits.host_blocks, limits.block_tokens),
            int(Tier.DISK): Memory(limits.disk_blocks, limits.block_tokens),
        }
        self._copies = SimCopies(
            memories, clock=clock, random=random, copy_us=copy_us, fault_chance=fault_chance, trace=trace
        )
        self._indexes_max = -(-limits.context_tokens_max // limits.block_tokens)
        self._occupants: list[Occupant | None] = [None] * limits.slots_max
        self._pending: dict[int, Occupant] = {}  # bound since the last launch
        self._spoiled: dict[int, Occupant] = {}  # blocks that hold values that are not finite
        self._flights: deque[Flight] = deque()
        self._last_step = -1

    @property
    def flights(self) -> int:
        """Steps launched and not retired."""
        return len(self._flights)

    def bind(self, slot: int, sampling: SamplingParams, prompt: np.ndarray, output: np.ndarray) -> None:
        """Give a slot to a request, with all its tokens so far; the next plan must bind it too."""
        if not 0 <= slot < self._limits.slots_max:
            raise ViolationError("I5", f"slot {slot} of {self._limits.slots_max} bound")
        if slot in self._pending:
            raise ViolationError("I7", f"slot {slot} bound twice before one launch")
        history = prompt.tolist() + output.tolist()
        table = [NO_BLOCK] * self._indexes_max
        self._pending[slot] = Occupant(-1, sampling.seed, len(prompt), history, table)

    def launch(self, plan: Plan) -> Flight:
        """Run a step; its tokens come out of `retire`."""
        if plan.step <= self._last_step:
            raise ViolationError("I9", f"step {plan.step} launched after step {self._last_step}")
        self._last_step = plan.step
        self._copies.start(plan)
        for block in plan.copy_to[plan.copy_to_tiers == Tier.DEVICE].tolist():
            self._spoiled.pop(block, None)
        bound = self._bind_slots(plan)
        self._apply_deltas(plan)
        self._check_groups(plan)
        rows = self._rows(plan)
        self._check_budgets(plan, rows)
        flight = Flight(plan.step, slots=frozenset(plan.slots.tolist()))
        flight.corrupt = self._find_corrupt(bound)
        for row in rows:
            self._check_row(row)
            self._claim(row, flight)
        for index, row in enumerate(rows):
            token = self._compute(row, flight)
            if row.failed:
                flight.failed[index] = row
            if row.sampled:
                flight.tokens.append(NOT_FINITE if row.failed else token)
        if rows:
            self._time(flight, rows)
        self._flights.append(flight)
        self._count(plan, rows)
        return flight

    def hold(self, plan: Plan) -> Flight:
        """No request of the simulator has a grammar, so nothing is held."""
        raise ViolationError("I5", f"step {plan.step} was held")

    def choose(self, held: Flight, masks: RowMasks | None) -> Flight:
        raise ViolationError("I5", f"step {held.step} was held")

    def retire(self, flight: Flight) -> StepResult:
        """Wait for a step and read its tokens."""
        if not self._flights or flight is not self._flights[0]:
            raise ViolationError("I9", f"step {flight.step} retired out of order")
        self._flights.popleft()
        self._clock.advance_us(max(0, flight.end_us - self._clock.now_us()))
        for row in flight.failed.values():
            self._trace.note("request {} is not finite in step {}", row.occupant.request_id, flight.step)
            self._trace.reached["rows not finite"] += 1
            self._faulted(row.occupant.request_id)
        faults = tuple(index for index, row in flight.failed.items() if not row.sampled)
        tokens = np.array(flight.tokens, dtype=np.int32)
        return StepResult(
            flight.step, tokens, faults=faults, corrupt=flight.corrupt, device_us=flight.device_us
        )

    def close(self) -> None:
        """Nothing runs beside the steps."""

    def reports(self, *, wait: bool) -> Reports | None:
        """What became of copies between tiers."""
        return self._copies.reports(wait=wait)

    def _find_corrupt(self, bound: list[Occupant]) -> tuple[int, ...]:
        """Now and then a block that was found for a request turns out to be corrupt, as a stamp would show."""
        block_tokens = self._limits.block_tokens
        found: list[int] = []
        for occupant in bound:
            if occupant.context and self._corrupt_chance and self._random.random() < self._corrupt_chance:
                found.append(occupant.table[self._random.randrange(occupant.context // block_tokens)])
                self._trace.reached["corrupt blocks found on reuse"] += 1
        return tuple(found)

    def _bind_slots(self, plan: Plan) -> list[Occupant]:
        slots = plan.bound_slots.tolist()
        if sorted(slots) != sorted(self._pending):
            raise ViolationError(
                "I7", f"step {plan.step} binds slots {slots}, the loop bound {sorted(self._pending)}"
            )
        block_tokens = self._limits.block_tokens
        bound = zip(slots, plan.bound_request_ids.tolist(), plan.cached_tokens.tolist(), strict=True)
        for slot, request_id, cached in bound:
            occupant = self._pending[slot]
            for flight in self._flights:
                if slot in flight.slots:
                    raise ViolationError(
                        "I6", f"slot {slot} given to request {request_id} while step {flight.step} uses it"
                    )
            if not 0 <= cached < len(occupant.history) or cached % block_tokens:
                raise ViolationError(
                    "cache",
                    f"request {request_id}: a hit of {cached} in a history of {len(occupant.history)} tokens",
                )
            occupant.request_id = request_id
            salt, prompt_tokens = self._origin_of(request_id)
            if occupant.prompt_tokens != prompt_tokens:
                raise ViolationError(
                    "I7",
                    f"request {request_id}: bound {occupant.prompt_tokens} of {prompt_tokens} prompt tokens",
                )
            occupant.root = model.root(salt)
            occupant.context = cached
            self._occupants[slot] = occupant
        self._pending.clear()
        return [occupant for occupant in map(self._occupants.__getitem__, slots) if occupant is not None]

    def _apply_deltas(self, plan: Plan) -> None:
        deltas = zip(
            plan.table_slots.tolist(), plan.table_indexes.tolist(), plan.table_blocks.tolist(), strict=True
        )
        for slot, index, block in deltas:
            occupant = self._occupants[slot] if 0 <= slot < self._limits.slots_max else None
            if (
                occupant is None
                or not 0 <= index < self._indexes_max
                or not 0 <= block < self._limits.blocks_total
            ):
                raise ViolationError("I5", f"table[{slot}, {index}] = {block} is out of range")
            for flight in self._flights:
                writer = flight.writes.get(block, occupant.request_id)
                if writer != occupant.request_id:
                    raise ViolationError(
                        "I6",
                        f"block {block} given to request {occupant.request_id} while step {flight.step} "
                        f"writes it for request {writer}",
                    )
            occupant.table[index] = block

    def _check_groups(self, plan: Plan) -> None:
        """Groups are of decode rows, a row is in one, and what they share is computed and the same."""
        members = plan.group_rows.tolist()
        if len(set(members)) < len(members) or not all(0 <= row < plan.decode_rows for row in members):
            raise ViolationError("I7", f"step {plan.step} groups rows {members} of {plan.decode_rows}")
        ends = np.cumsum(plan.group_sizes).tolist()
        for end, size, blocks in zip(
            ends, plan.group_sizes.tolist(), plan.group_blocks.tolist(), strict=True
        ):
            rows = members[end - size : end]
            occupants = [self._occupants[slot] for slot in plan.slots[rows].tolist()]
            tables = {tuple(o.table[:blocks]) for o in occupants if o is not None}
            if len(tables) != 1 or int(plan.starts[rows].min()) < blocks * self._limits.block_tokens:
                raise ViolationError("memory", f"step {plan.step}: rows {rows} do not share {blocks} blocks")
            self._trace.reached["rows that share a prefix"] += size

    def _rows(self, plan: Plan) -> list[Row]:
        rows: list[Row] = []
        tokens = plan.tokens.tolist()
        at = 0
        seen: set[int] = set()
        facts = zip(
            plan.request_ids.tolist(),
            plan.slots.tolist(),
            plan.starts.tolist(),
            plan.lengths.tolist(),
            plan.sampled.tolist(),
            strict=True,
        )
        for request_id, slot, start, length, sampled in facts:
            occupant = self._occupants[slot] if 0 <= slot < self._limits.slots_max else None
            if occupant is None or occupant.request_id != request_id:
                raise ViolationError(
                    "I7", f"request {request_id} planned in slot {slot}, which is not its own"
                )
            if slot in seen:
                raise ViolationError("I7", f"two rows for slot {slot}")
            seen.add(slot)
            rows.append(Row(occupant, start, tokens[at : at + length], bool(sampled)))
            at += length
        if at != len(tokens):
            raise ViolationError("I7", f"rows of {at} tokens in a plan of {len(tokens)}")
        return rows

    def _check_budgets(self, plan: Plan, rows: list[Row]) -> None:
        limits = self._limits
        tokens = sum(len(row.tokens) for row in rows)
        prefill = tokens - plan.decode_rows
        if (not rows and len(plan.copy_ids) == 0) or plan.rows != len(rows):
            raise ViolationError("I5", f"a plan of {plan.rows} rows holds {len(rows)}")
        if len(rows) > limits.rows_per_step_max:
            raise ViolationError("I5", f"{len(rows)} rows, at most {limits.rows_per_step_max}")
        if tokens > limits.tokens_per_step_max:
            raise ViolationError("I5", f"{tokens} tokens, at most {limits.tokens_per_step_max}")
        if prefill > limits.prefill_tokens_max:
            raise ViolationError("I5", f"{prefill} prefill tokens, at most {limits.prefill_tokens_max}")
        if any(len(row.tokens) != 1 or not row.sampled for row in rows[: plan.decode_rows]):
            raise ViolationError("I5", f"the first {plan.decode_rows} rows are not all decodes of one token")

    def _check_row(self, row: Row) -> None:
        occupant, history = row.occupant, row.occupant.history
        who = f"request {occupant.request_id}"
        if not row.tokens:
            raise ViolationError("I7", f"{who}: an empty row")
        if row.start != occupant.context:
            raise ViolationError("I7", f"{who} starts at {row.start} with {occupant.context} tokens in KV")
        if row.end > self._limits.context_tokens_max:
            raise ViolationError("I5", f"{who} reaches {row.end} of {self._limits.context_tokens_max} tokens")
        if row.end > len(history):
            raise ViolationError("I7", f"{who} computes up to {row.end}, its history ends at {len(history)}")
        if row.sampled != (row.end == len(history)):
            raise ViolationError("I7", f"{who}: sampled={row.sampled} at {row.end} of {len(history)} tokens")
        if row.tokens == [LAST_SAMPLED] and occupant.has_sampled:
            row.tokens[-1] = history[-1]
            self._trace.reached["token taken from the device"] += 1
        if row.tokens != history[row.start : row.end]:
            raise ViolationError("I7", f"{who}: the tokens planned at {row.start}:{row.end} are not its own")

    def _claim(self, row: Row, flight: Flight) -> None:
        """Enter the blocks a row writes; none may belong to another row or another step in flight."""
        request_id, table = row.occupant.request_id, row.occupant.table
        block_tokens = self._limits.block_tokens
        for block in table[row.start // block_tokens : (row.end - 1) // block_tokens + 1]:
            if block == NO_BLOCK:
                raise ViolationError(
                    "I7", f"request {request_id} has no block for tokens {row.start}:{row.end}"
                )
            if block in flight.writes:
                raise ViolationError(
                    "I7", f"requests {flight.writes[block]} and {request_id} both write block {block}"
                )
            flight.writes[block] = request_id
            for other in self._flights:
                users = other.writes.get(block, request_id), other.reads.get(block, request_id)
                if users != (request_id, request_id):
                    raise ViolationError(
                        "I6", f"request {request_id} writes block {block}, in use by step {other.step}"
                    )

    def _compute(self, row: Row, flight: Flight) -> int:
        """Read the context through the table, write the new KV; the token that follows."""
        occupant, memory, block_tokens = row.occupant, self._memory, self._limits.block_tokens
        table = occupant.table
        full, rest = divmod(row.start, block_tokens)
        row.failed = self._random.random() < self._fault_chance
        fingerprint = occupant.root
        for index in range(full + (rest > 0)):
            block = table[index]
            self._check_read(row, block, flight)
            fingerprint = memory.read(block, block_tokens if index < full else rest, fingerprint)
        history = model.fold(fingerprint, row.tokens)
        done, index, offset = 0, full, rest
        while done < len(row.tokens):
            count = min(block_tokens - offset, len(row.tokens) - done)
            memory.write(table[index], offset, history[done : done + count + 1])
            self._mark(table[index], row, fresh=offset == 0)
            done, index, offset = done + count, index + 1, 0
        occupant.context = row.end
        token = model.sample(history[-1], occupant.seed)
        if row.sampled:
            occupant.history.append(token)
            occupant.has_sampled = True
        return token

    def _check_read(self, row: Row, block: int, flight: Flight) -> None:
        request_id = row.occupant.request_id
        if block == NO_BLOCK:
            raise ViolationError("memory", f"request {request_id} reads through a hole in its table")
        for other in (flight, *self._flights):
            if other.writes.get(block, request_id) != request_id:
                raise ViolationError(
                    "I6", f"request {request_id} reads block {block}, written by step {other.step}"
                )
        if flight.reads.setdefault(block, request_id) != request_id:
            flight.reads[block] = SHARED
        if spoiler := self._spoiled.get(block):
            if spoiler is not row.occupant:
                raise ViolationError(
                    "memory", f"request {request_id} reads what a failed row of {spoiler.request_id} wrote"
                )
            row.failed = True

    def _mark(self, block: int, row: Row, *, fresh: bool) -> None:
        """Remember what failed rows have written: their own next rows fail too, nobody else may read it."""
        if row.failed:
            self._spoiled[block] = row.occupant
        elif fresh:
            self._spoiled.pop(block, None)

    def _time(self, flight: Flight, rows: list[Row]) -> None:
        tokens = sum(len(row.tokens) for row in rows)
        context = sum(row.start for row in rows)
        begin_us = max([self._clock.now_us()] + [other.end_us for other in self._flights])
        flight.device_us = self._cost.step_us(tokens, context, self._random)
        flight.end_us = begin_us + flight.device_us

    def _count(self, plan: Plan, rows: list[Row]) -> None:
        reached = self._trace.reached
        reached["steps"] += 1
        reached["tokens"] += sum(len(row.tokens) for row in rows)
        reached["steps of decode and prefill"] += 0 < plan.decode_rows < len(rows)
        reached["steps launched over another"] += len(self._flights) > 1
        reached["chunks that end inside a prompt"] += any(not row.sampled for row in rows)
