# SPDX-License-Identifier: MIT
"""What an executor hands back, and what a loop may ask of it. Free of torch: loop and simulator import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.control import Plan


@dataclass(frozen=True, slots=True)
class StepResult:
    """One retired step."""

    step: int
    tokens: np.ndarray
    """int32 [S], one per sampled row, in plan order; negative where the row failed."""
    logprobs: Sequence[TokenLogprob | None] | None = None
    """[S] where any row asked for them, else None."""
    faults: tuple[int, ...] = ()
    """Rows of the plan that failed and are not sampled, so that no token can say so."""
    corrupt: tuple[int, ...] = ()
    """Blocks that the step read, found not to hold what was stored there."""
    device_us: int = 0
    """What the step took on the device; 0 where nobody measured it."""


@dataclass(frozen=True, slots=True)
class RowMasks:
    """Which tokens some of a step's sampled rows may say."""

    rows: np.ndarray
    """int64 [G], places among the sampled rows, rising."""
    bits: np.ndarray
    """int32 [G, W]: bit i % 32 of word i // 32 is set where token i may come; 32 W >= V."""


class Reports(NamedTuple):
    """What became of copies between tiers."""

    copy_ids: np.ndarray
    """uint64 [C]"""
    results: np.ndarray
    """uint8 [C], `CopyResult` each."""


class Executor(Protocol):
    """Whatever carries plans out: the device's executor or the simulator's. Flights retire in order."""

    def bind(self, slot: int, sampling: SamplingParams, prompt: np.ndarray, output: np.ndarray) -> None:
        """Give `slot` to a request, before the launch of the plan that binds it.

        prompt, output: int32 [n]; the output is what the request produced before it was sent back, if it was.
        """
        ...

    def launch(self, plan: Plan) -> Any:
        """Start a step and return its flight, without waiting for the device."""
        ...

    def hold(self, plan: Plan) -> Any:
        """Start a step but for its choice of tokens, which some mask will decide; what `choose` is given."""
        ...

    def choose(self, held: Any, masks: RowMasks | None) -> Any:
        """Start the choice of a step that was held, before the next step is launched; its flight.

        Rows without a mask choose as ever. Copies `masks`.
        """
        ...

    def retire(self, flight: Any) -> StepResult:
        """Wait for a flight's tokens."""
        ...

    def close(self) -> None:
        """End what runs beside the steps; nothing is launched any more."""
        ...

    def reports(self, *, wait: bool) -> Reports | None:
        """What became of copies that plans asked for, since the last call; None where there is nothing new.

        With `wait`, wait for it a bounded time, unless no copy is under way.
        """
        ...
