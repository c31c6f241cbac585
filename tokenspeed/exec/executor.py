# SPDX-License-Identifier: MIT
"""The executor: binds slots, launches plans, retires flights. It decides nothing.

In: plans of the control plane. Out: `StepResult`. A step is: lay the plan out, run the model, choose tokens, note
them as their slots' last, start their copy to the host; none of it waits for the device. `retire` waits. The same
lines run on a CPU, where every operation is done when it returns. Flights retire in launch order.

A row whose logits are not finite yields token -1, and its blocks are cleared of what is not finite (other rows may
share them; finite values keep their bits). No other row is touched.
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

_NOT_FINITE: Final = -1


@dataclass(frozen=True, slots=True)
class InFlight:
    """A launched step that is not read yet; S sampled rows, tensors on the host."""

    step: int
    tokens: torch.Tensor
    """[S] int32, -1 where the row's logits were not finite."""
    sampled: Sampled
    slots: NDArray[np.int32]
    """[S]"""
    context_tokens: NDArray[np.int32]
    """[S] tokens in KV once this step's are written."""
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
        slots = plan.slots[mask]
        context_tokens = inputs.context_lens_np[mask]
        finite = torch.isfinite(logits.amax(dim=-1))  # NaN and +infinity win a maximum: one pass sees both
        sampled = self._sampler.sample(logits, slots, context_tokens)
        self._batch.note_last(sampled.tokens)
        tokens = self._to_host(torch.where(finite, sampled.tokens, _NOT_FINITE).to(torch.int32))
        copied = None
        if self._asynchronous:
            copied = torch.Event(self._model.device)
            copied.record()
        return InFlight(plan.step, tokens, sampled, slots, context_tokens, copied)

    @torch.inference_mode()
    def retire(self, flight: InFlight) -> StepResult:
        """Wait for a flight's tokens."""
        if flight.copied is not None:
            flight.copied.synchronize()
        tokens = flight.tokens.numpy()
        if (tokens < 0).any():
            self._scrub(flight, tokens < 0)
        return StepResult(flight.step, tokens, self._sampler.logprobs(flight.sampled))

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._asynchronous:
            return tensor
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)

    def _scrub(self, flight: InFlight, faulty: NDArray[np.bool_]) -> None:
        for slot, context_tokens in zip(flight.slots[faulty], flight.context_tokens[faulty], strict=True):
            blocks = self._batch.blocks_of(int(slot), int(context_tokens))
            self._arena.scrub(torch.from_numpy(blocks).long().to(self._model.device))
