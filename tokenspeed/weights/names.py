# SPDX-License-Identifier: MIT
"""Name rules: how a family's parameter names are spelled in a checkpoint, and which names it leaves unread on
purpose.

Layers already declare their sources by the names Hugging Face gives them
(`model.layers.0.self_attn.q_proj.weight`); merging and stacking is part of that declaration. What is left for
a rule is a prefix and what to skip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NameRules:
    """`prefix` goes before every name; checkpoint names that match one of `skip` are left unread."""

    prefix: str = ""
    skip: tuple[str, ...] = ()

    def source(self, name: str) -> str:
        """The checkpoint's name of `name`."""
        return self.prefix + name

    def skips(self, source: str) -> bool:
        """Whether a tensor of this name is knowingly not loaded."""
        return any(re.match(pattern, source) for pattern in self.skip)
