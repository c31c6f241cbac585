# SPDX-License-Identifier: MIT
"""The executor: binds slots, launches plans, retires flights. It decides nothing.

In: plans of the control plane. Out: `StepResult`. A step is: lay the plan out, settle it, run the model, take
each row's likeliest token and note it as its slot's last, start the copy to the host; where a row wants more
than its likeliest token, the sampler chooses again in between. None of it waits for the device. `retire`
waits. Flights retire in launch order. The same lines run on a CPU, where every operation is done when it
returns.

A step that only decodes runs as a graph (`graphs`), padded, where graphs are recorded; then what `_compute`
launches is in the graph, and the host's part of a step is a copy, a replay and a copy.

A row is at fault if its logits are not finite or, where it is not sampled, the KV it wrote. It is reported,
so that nobody comes to share its blocks, and its blocks are cleared of what is not finite (finite values,
which other rows may read, keep their bits). No other row is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed import kernels
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Plan
from tokenspeed.exec import graphs
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch, Laid
from tokenspeed.exec.graphs import Graphs, Recorder
from tokenspeed.exec.landing import Landings
from tokenspeed.exec.protocol import Reports, RowMasks, StepResult
from tokenspeed.exec.stamps import Stamps
from tokenspeed.exec.stopwatch import Lap, Stopwatch
from tokenspeed.exec.tiers import Mover
from tokenspeed.models import Model
from tokenspeed.sampling import Report, Rows, Sampler

SHARED_BLOCKS_LEAST: Final = 4096
"""Blocks that need not be read when what rows share is read once, below which the step is as fast without.

Measured on an H200 (docs/log/0003): two launches more a layer take some 25 us, and a block that is not read again
saves 8 ns, for rows that read it at about the same time find it in the second-level cache.
"""


@dataclass(frozen=True, slots=True)
class Reused:
    """Blocks that a step found in the cache, and on the host, once its copies have landed, whether they are sound."""

    blocks: NDArray[np.int32]
    unlike: torch.Tensor
    """[n] bool: the block does not bear its stamp."""


@dataclass(frozen=True, slots=True)
class Held:
    """A step whose model runs and whose tokens are not chosen yet."""

    plan: Plan
    laid: Laid | None
    """None where the plan holds copies alone."""
    logits: torch.Tensor
    """[S, V] float32, or more rows of padding."""
    lap: Lap | None = None
    reused: Reused | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """A launched step that is not read yet; tensors on the host."""

    plan: Plan
    tokens: torch.Tensor
    """[S] int32, -1 where the row's logits were not finite."""
    finite: torch.Tensor | None
    """[T] bool: the KV written for this token is finite. Only where a row is not sampled: in others not
    finite KV reaches the logits.
    """
    report: Report | None
    copied: torch.Event | None
    """Recorded behind the copies; None where they are done at launch."""
    lap: Lap | None = None
    reused: Reused | None = None


def _blocks_spared(plan: Plan) -> int:
    """Blocks that need not be read if every group reads what it shares once."""
    return int(((plan.group_sizes - 1) * plan.group_blocks).sum()) if len(plan.group_sizes) else 0


class DeviceExecutor:
    """A model, its arena and its buffers on one device."""

    def __init__(
        self,
        model: Model,
        arena: Arena,
        batch: Batch,
        sampler: Sampler,
        *,
        stamps: Stamps | None = None,
        mover: Mover | None = None,
    ) -> None:
        """`stamps`: what is known of blocks is checked when they are reused; `mover`: there are lower tiers."""
        self._stamps = stamps
        self._mover = mover
        self._model = model
        self._arena = arena
        self._batch = batch
        self._sampler = sampler
        self._graphs = self._sharing = Graphs({})
        self._greedy = kernels.bind(
            "step.greedy", kernels.describe(model.device), dtype=torch.float32, vocab=model.facts.vocab
        )
        self._chosen = torch.zeros(batch.limits.rows, dtype=torch.int32, device=model.device)
        self._nothing = torch.zeros(0, dtype=torch.int32)
        self._landings = Landings(batch.limits.rows, batch.limits.tokens, model.device)
        self._stopwatch = Stopwatch(model.device)

    def bind(self, slot: int, sampling: SamplingParams, prompt: np.ndarray, output: np.ndarray) -> None:
        """Give `slot` to a request; `prompt` and `output` (int32 [n]) are what penalties look back on."""
        self._sampler.bind(slot, sampling, prompt, output)

    @torch.inference_mode()
    def record(self, recorder: Recorder, sizes: Sequence[int]) -> Graphs:
        """Record decode steps of so many rows, and run those as recorded from now on.

        Raises `graphs.WaitsError`, `SetupError`.
        """
        laid = {rows: self._batch.lay_padding(rows) for rows in sizes}
        recorded = graphs.record(recorder, sizes, lambda rows: self._compute(laid[rows]))
        if self._model.shares_blocks:
            again = graphs.sharing_sizes(sizes)
            shared = {rows: self._batch.lay_padding(rows, shared=True) for rows in again}
            self._sharing = graphs.record(recorder, again, lambda rows: self._compute(shared[rows]))
        self._graphs = recorded
        return self._graphs

    def launch(self, plan: Plan) -> InFlight:
        """Start a step."""
        return self.choose(self.hold(plan), None)

    @torch.inference_mode()
    def hold(self, plan: Plan) -> Held:
        """Start a step up to its logits, and the copies beside it."""
        if self._stamps is not None:
            self._stamps.freeze(plan.frozen_blocks, plan.frozen_names)
        if self._mover is not None:
            self._mover.start(plan)
        if plan.rows == 0:
            return Held(plan, None, self._nothing)
        lap = self._stopwatch.begin()
        sharing = bool(self._sharing) and _blocks_spared(plan) >= SHARED_BLOCKS_LEAST
        recorded = self._sharing if sharing else self._graphs
        size = recorded.size_for(plan.rows) if plan.decode_rows == plan.rows else None
        if size is None:
            laid = self._batch.lay(plan)
            logits = self._compute(laid)
        else:
            laid = self._batch.lay_padded(plan, size, shared=sharing)
            logits = recorded.run(size)
        return Held(plan, laid, logits, lap, self._look(plan))

    def _look(self, plan: Plan) -> Reused | None:
        """Check the blocks that newly bound requests found in the cache."""
        if self._stamps is None or len(plan.cached_names) == 0:
            return None
        bound = zip(plan.bound_slots.tolist(), plan.cached_tokens.tolist(), strict=True)
        blocks = np.concatenate([self._batch.blocks_of(slot, cached) for slot, cached in bound])
        chosen = self._stamps.chosen(plan.cached_names)
        if not chosen.any():
            return None
        unlike = self._stamps.unlike(blocks[chosen], plan.cached_names[chosen])
        landed = torch.empty(unlike.shape, dtype=torch.bool, pin_memory=unlike.is_cuda)
        return Reused(blocks[chosen], landed.copy_(unlike, non_blocking=True))

    @torch.inference_mode()
    def choose(self, held: Held, masks: RowMasks | None) -> InFlight:
        """Start the choice of its tokens."""
        plan, laid, logits = held.plan, held.laid, held.logits
        if laid is None:
            return InFlight(plan, self._nothing, None, None, None)
        samples = plan.samples
        slots = plan.slots if samples == plan.rows else plan.slots[plan.sampled.view(np.bool_)]
        chosen, report = self._chosen[:samples], None
        if masks is not None or self._sampler.refines(slots):
            rows = Rows(laid.sample_slots[:samples], laid.sample_positions[:samples], slots)
            report = self._sampler.refine(logits[:samples], chosen, self._batch.last_tokens, rows, masks)
        finite = None if samples == plan.rows else self._arena.finite_at(laid.inputs.write_index)
        if held.lap is not None:
            held.lap.end()
        tokens, finite_landed, copied = self._landings.land(chosen, finite)
        return InFlight(plan, tokens, finite_landed, report, copied, held.lap, held.reused)

    @torch.inference_mode()
    def retire(self, flight: InFlight) -> StepResult:
        """Wait for a flight's tokens. Comes before the commit of its plan."""
        if flight.copied is not None:
            flight.copied.synchronize()
        tokens = flight.tokens.numpy()
        finite = None if flight.finite is None else flight.finite.numpy()
        faults: tuple[int, ...] = ()
        if (tokens < 0).any() or (finite is not None and not finite.all()):
            faults = self._isolate(flight.plan, tokens, finite)
        logprobs = None if flight.report is None else flight.report.read()
        corrupt: tuple[int, ...] = ()
        if flight.reused is not None and flight.reused.unlike.any():
            corrupt = tuple(np.unique(flight.reused.blocks[flight.reused.unlike.numpy()]).tolist())
        step_us = 0 if flight.lap is None else flight.lap.us()
        return StepResult(flight.plan.step, tokens, logprobs, faults, corrupt, step_us)

    def reports(self, *, wait: bool) -> Reports | None:
        """What became of copies between tiers."""
        return None if self._mover is None else self._mover.reports(wait=wait)

    def close(self) -> None:
        """End what runs beside the steps."""
        if self._mover is not None:
            self._mover.close()

    def _compute(self, laid: Laid) -> torch.Tensor:
        """What a graph holds: everything from laid inputs to noted tokens; logits [S, V]."""
        self._batch.settle(laid)
        logits = self._model.forward(laid.inputs, self._arena)
        chosen = self._chosen[: len(laid.sample_slots)]
        self._greedy(logits, laid.sample_slots, self._batch.last_tokens, chosen)
        return logits

    def _isolate(
        self, plan: Plan, tokens: NDArray[np.int32], finite: NDArray[np.bool_] | None
    ) -> tuple[int, ...]:
        """Clear the blocks of the rows at fault, and name those that are not sampled."""
        mask = plan.sampled.view(np.bool_)
        faulty = np.zeros(plan.rows, np.bool_)
        if finite is not None:
            faulty = ~np.logical_and.reduceat(finite, np.cumsum(plan.lengths) - plan.lengths) & ~mask
        unsampled = tuple(np.flatnonzero(faulty).tolist())
        faulty[mask] = tokens < 0
        for row in np.flatnonzero(faulty).tolist():
            context_tokens = int(plan.starts[row] + plan.lengths[row])
            blocks = self._batch.blocks_of(int(plan.slots[row]), context_tokens)
            self._arena.scrub(torch.from_numpy(blocks).long().to(self._model.device))
        return unsampled
