# SPDX-License-Identifier: MIT
"""What an executor hands back, and what a loop may ask of it. Free of torch: the loop and the simulator import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tokenspeed.control.plan import Plan

from tokenspeed.base.sampling import SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class StepResult:
    """One retired step."""

    step: int
    tokens: np.ndarray
    """int32 [S], one per sampled row, in plan order."""
    logprobs: Sequence[TokenLogprob | None] | None = None
    """[S] where any row asked for them, else None."""
    faults: tuple[int, ...] = ()
    """Sampled rows (positions in `tokens`) whose logits were NaN or infinite; their tokens mean nothing."""


class Executor(Protocol):
    """Whatever carries plans out: the device's executor, or the simulator's. Flights retire in launch order."""

    def bind(self, slot: int, sampling: SamplingParams, prompt: np.ndarray, output: np.ndarray) -> None:
        """Give `slot` to a request before the launch of the plan that binds it. int32 [n] each; output is what
        the request produced before it was sent back, empty at first."""
        ...

    def launch(self, plan: Plan) -> Any:
        """Start a step and return its flight, without waiting for the device."""
        ...

    def retire(self, flight: Any) -> StepResult:
        """Wait for a flight's tokens."""
        ...
