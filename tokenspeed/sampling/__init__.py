# SPDX-License-Identifier: MIT
"""From logits to tokens: greedy or drawn, penalised, biased, truncated, with log probabilities; all rows at
once.

`exec` binds a slot once a request and refines what a step chose. Public: `Sampler`, `Rows`, `Report`.
"""

from __future__ import annotations

from tokenspeed.sampling.report import Report
from tokenspeed.sampling.sampler import Rows, Sampler

__all__ = ["Report", "Rows", "Sampler"]
