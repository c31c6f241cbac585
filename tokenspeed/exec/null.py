# SPDX-License-Identifier: MIT
"""An executor that computes nothing: every step takes `STEP_US`, every answer is a piece of its own prompt.

In: plans. Out: `StepResult`s of the right shape. What is left of the engine around it is its own cost, which
`bench frontend` measures: text, HTTP, wire, control plane. It behaves like a device: `launch` returns at once,
steps run one after the other, `retire` sleeps until its step is over. Answers are text that tokenises as the
prompt does, or the recorded answer where one is forced. No torch, no KV, no sampling: temperatures, penalties
and log probabilities are not looked at. Reached only by `--device null`, never by `auto`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Plan
from tokenspeed.exec.protocol import Reports, RowMasks, StepResult

STEP_US: Final = 5_000
"""About a decode step of 16 requests on a GPU; the wait costs no CPU."""
ANSWER_TOKENS: Final = 4096
"""A longer answer repeats itself."""


@dataclass(frozen=True, slots=True)
class _Flight:
    step: int
    tokens: NDArray[np.int32]
    done_ns: int


class NullExecutor:
    """No model on no device, with `slots` rows of answers."""

    def __init__(self, *, slots: int, step_us: int = STEP_US) -> None:
        self._step_ns = step_us * 1000
        self._answers = np.zeros((slots, ANSWER_TOKENS), np.int32)
        self._prompt_tokens = np.zeros(slots, np.int32)
        self._free_ns = 0  # when the last launched step is over

    def bind(self, slot: int, sampling: SamplingParams, prompt: np.ndarray, output: np.ndarray) -> None:
        """Give `slot` to a request, whose answer is what stands at a quarter of its prompt.

        There it is inside an agent's first message, away from the special tokens at either end.
        """
        said = np.frombuffer(sampling.forced, "<i4") if sampling.forced else prompt[len(prompt) // 4 :]
        self._answers[slot] = np.resize(said[:ANSWER_TOKENS], ANSWER_TOKENS)
        self._prompt_tokens[slot] = len(prompt)

    def launch(self, plan: Plan) -> _Flight:
        """Start a step."""
        return self.hold(plan)

    def hold(self, plan: Plan) -> _Flight:
        """Start a step; it takes its time whenever its tokens are chosen."""
        mask = plan.sampled.view(np.bool_)
        slots = plan.slots[mask]
        ends = plan.starts[mask] + plan.lengths[mask]
        tokens = self._answers[slots, (ends - self._prompt_tokens[slots]) % ANSWER_TOKENS]
        self._free_ns = max(time.monotonic_ns(), self._free_ns) + self._step_ns
        return _Flight(plan.step, tokens, self._free_ns)

    def choose(self, held: _Flight, masks: RowMasks | None) -> _Flight:
        """Say the answer's token where the mask has it, else the first that it has."""
        if masks is None:
            return held
        for row, bits in zip(masks.rows.tolist(), masks.bits, strict=True):
            token = int(held.tokens[row])
            if not (int(bits[token >> 5]) >> (token & 31)) & 1:
                held.tokens[row] = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))[0]
        return replace(held, done_ns=max(held.done_ns, time.monotonic_ns()))

    def close(self) -> None:
        """Nothing runs beside the steps."""

    def reports(self, *, wait: bool) -> Reports | None:
        """Nothing is ever copied."""
        return None

    def retire(self, flight: _Flight) -> StepResult:
        """Wait until the step is over."""
        time.sleep(max(0, flight.done_ns - time.monotonic_ns()) / 1e9)
        return StepResult(flight.step, flight.tokens, device_us=self._step_ns // 1000)
