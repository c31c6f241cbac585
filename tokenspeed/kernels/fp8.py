# SPDX-License-Identifier: MIT
"""A paged context held in 8 bits: what stands for an arena where the trait `kv` is "fp8".

A token's vector is held as e4m3 with one float32 scale, the largest of its numbers by 448, so that a kernel scales a
score and a weight instead of every element. The rotary key of latent attention stays in 16 bits: it is a ninth of
the numbers, has no norm before it, and is where 8 bits cost accuracy.

    Latents   values [N, P, L] e4m3, rope [N, P, Dr] 16 bit or float32, scale [N, P] float32
              512 + 128 + 4 = 644 bytes a token where 16 bits take 1152
    Heads     values [N, P, K, D] e4m3, scale [N, P, K] float32: keys or values of grouped heads
              132 bytes a vector of 128 where 16 bits take 256
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

E4M3: Final = torch.float8_e4m3fn
E4M3_MAX: Final = 448.0
PEAK_LEAST: Final = 1e-10
"""A vector of smaller numbers is scaled as if this were its largest: scales are normal numbers, never zero."""


class Latents(NamedTuple):
    """The arena of one layer of latent attention."""

    values: Tensor
    rope: Tensor
    scale: Tensor


class Heads(NamedTuple):
    """The arena of the keys, or of the values, of one layer of grouped attention."""

    values: Tensor
    scale: Tensor


def quantised(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Round float32 vectors [.., D] to e4m3 with a scale [..] each; what is not finite makes its scale not finite."""
    scale = vectors.abs().amax(-1).clamp_min(PEAK_LEAST) / E4M3_MAX
    return (vectors / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scale


def restored(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that e4m3 values [.., D] and scales [..] stand for."""
    return values.to(dtype) * scale.to(dtype)[..., None]
