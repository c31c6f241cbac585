# SPDX-License-Identifier: MIT
"""What one layer keeps per token of context: the shapes from which `exec` makes arenas and counts bytes.

`format` is the trait `kv` of the ops: "native" keeps vectors in the model's dtype, "fp8" as `kernels.fp8` has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.fp8 import E4M3, Heads, Latents

LayerKV = tuple[Tensor, Tensor] | tuple[Heads, Heads] | Tensor | Latents
"""The arena of one layer, as its ops take it."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One tensor of an arena: what a token has in it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class GQA:
    """Keys and values [N, P, K, D] each; `kv_heads` are those of this rank."""

    kv_heads: int
    head_dim: int
    format: str = "native"

    def planes(self, dtype: torch.dtype) -> tuple[Plane, ...]:
        """Keys and values; of fp8 each with its scales."""
        shape = (self.kv_heads, self.head_dim)
        if self.format == "native":
            return (Plane(shape, dtype),) * 2
        return (Plane(shape, E4M3), Plane(shape[:1], torch.float32)) * 2

    def joined(self, planes: Sequence[Tensor]) -> LayerKV:
        """The arena that tensors [N, P, ..] of these planes make."""
        if self.format == "native":
            k, v = planes
            return k, v
        return Heads(*planes[:2]), Heads(*planes[2:])


@dataclass(frozen=True, slots=True)
class MLA:
    """One latent and one rotary key [N, P, L + Dr], shared by all heads and whole on every rank."""

    latent: int
    rope: int
    format: str = "native"

    def planes(self, dtype: torch.dtype) -> tuple[Plane, ...]:
        """Latent and rotary key side by side; of fp8 apart, with the latent's scale."""
        if self.format == "native":
            return (Plane((self.latent + self.rope,), dtype),)
        return Plane((self.latent,), E4M3), Plane((self.rope,), dtype), Plane((), torch.float32)

    def joined(self, planes: Sequence[Tensor]) -> LayerKV:
        """The arena that tensors [N, P, ..] of these planes make."""
        return planes[0] if self.format == "native" else Latents(*planes)


KVSpec = GQA | MLA


def bytes_per_token(specs: Sequence[KVSpec], dtype: torch.dtype) -> int:
    """KV bytes of one token over all layers."""
    return sum(plane.bytes_per_token for spec in specs for plane in spec.planes(dtype))
