# SPDX-License-Identifier: MIT
"""The executor: binds slots, launches plans, retires flights. It decides nothing.

In: plans of the control plane. Out: `StepResult`. A step is: lay the plan out, run the model, choose tokens,
note them as their slots' last, start their copy to the host; none of it waits for the device. `retire` waits.
The same lines run on a CPU, where every operation is done when it returns. Flights retire in launch order.

A row is at fault if its logits are not finite or, where it is not sampled, the KV it wrote. It is reported,
so that nobody comes to share its blocks, and its blocks are cleared of what is not finite (finite values,
which other rows may read, keep their bits). No other row is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Plan
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch
from tokenspeed.exec.protocol import StepResult
from tokenspeed.models import Model
from tokenspeed.sampling import Sampled, Sampler

_FAULT: Final = -1


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
    sampled: Sampled
    copied: torch.Event | None
    """Recorded behind the copies; None where they are done at launch."""


class DeviceExecutor:
    """A model, its arena and its buffers on one device."""

    def __init__(self, model: Model, arena: Arena, batch: Batch, sampler: Sampler) -> None:
        self._model = model
        self._arena = arena
        self._batch = batch
        self._sampler = sampler
        self._asynchronous = model.device.type != "cpu"

    def bind(self, slot: int, sampling: SamplingParams, prompt: np.ndarray, output: np.ndarray) -> None:
        """Give `slot` to a request; `prompt` and `output` (int32 [n]) are what penalties look back on."""
        self._sampler.bind(slot, sampling, prompt, output)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> InFlight:
        """Start a step."""
        inputs = self._batch.lay(plan)
        logits = self._model.forward(inputs, self._arena)
        mask = plan.sampled.view(np.bool_)
        sampled = self._sampler.sample(logits, plan.slots[mask], inputs.context_lens_np[mask])
        self._batch.note_last(sampled.tokens)
        tokens = self._to_host(torch.where(sampled.fault, _FAULT, sampled.tokens).to(torch.int32))
        finite = None
        if plan.samples < plan.rows:
            finite = self._to_host(self._arena.finite_at(inputs.write_index))
        copied = None
        if self._asynchronous:
            copied = torch.Event(self._model.device)
            copied.record()
        return InFlight(plan, tokens, finite, sampled, copied)

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
        return StepResult(flight.plan.step, tokens, self._sampler.logprobs(flight.sampled), faults)

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._asynchronous:
            return tensor
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)

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
