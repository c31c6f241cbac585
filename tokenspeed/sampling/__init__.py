# SPDX-License-Identifier: MIT
"""From logits to tokens: greedy or drawn, penalised, biased, truncated, with log probabilities; all rows at
once.

`exec` binds a slot once a request and samples once a step. Public: `Sampler`, `Sampled`.
"""

from __future__ import annotations

from tokenspeed.sampling.sampler import Sampled, Sampler

__all__ = ["Sampled", "Sampler"]
