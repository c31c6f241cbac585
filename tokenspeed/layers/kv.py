# SPDX-License-Identifier: MIT
"""What one layer keeps per token of context: the shapes from which `exec` makes arenas and counts bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GQA:
    """Keys and values [N, P, K, D] each; `kv_heads` are those of this rank."""

    kv_heads: int
    head_dim: int

    @property
    def elements_per_token(self) -> int:
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class MLA:
    """One latent and one rotary key [N, P, L + Dr], shared by all heads and whole on every rank."""

    latent: int
    rope: int

    @property
    def elements_per_token(self) -> int:
        return self.latent + self.rope


KVSpec = GQA | MLA
