# SPDX-License-Identifier: MIT
"""What a simulated step costs: a base, a price per token, a price per KV entry read, and seeded jitter.

The prices are of no particular device; they differ by seed so that arrivals, cancels and steps interleave
in every order. Fitting prices to measured steps is the planner's business, not this file's.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class StepCost:
    """Prices of one step in microseconds; `jitter` is the largest relative excess."""

    base_us: int
    token_us: float
    context_us: float
    jitter: float

    @staticmethod
    def draw(random: Random) -> StepCost:
        """Prices of one world."""
        return StepCost(
            base_us=random.choice((50, 1_000, 8_000)),
            token_us=random.choice((0.0, 5.0, 100.0)),
            context_us=random.choice((0.0, 0.1, 3.0)),
            jitter=random.choice((0.0, 0.2, 3.0)),
        )

    def step_us(self, tokens: int, context_tokens: int, random: Random) -> int:
        """Duration of a step that computes `tokens` and reads `context_tokens` KV entries; at least 1."""
        exact = self.base_us + self.token_us * tokens + self.context_us * context_tokens
        return max(1, int(exact * (1.0 + self.jitter * random.random())))
