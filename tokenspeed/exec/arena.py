# SPDX-License-Identifier: MIT
"""The KV arena: the device memory that block ids of the control plane index.

In: what each layer keeps per token, a number of blocks. Out: per layer, tensors of N blocks of P tokens,

    GQA   (k [N, P, K, D], v [N, P, K, D])
    MLA   latent [N, P, L + Dr]

Allocated once, never moved, zeroed (so that a block holds finite numbers before it is first written; on a
CPU the system commits zeroed pages only when they are touched). Does not know which block is whose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.layers.kv import GQA, MLA, KVSpec

LayerKV = tuple[torch.Tensor, torch.Tensor] | torch.Tensor


def bytes_per_token(specs: Sequence[KVSpec], dtype: torch.dtype) -> int:
    """KV bytes of one token over all layers."""
    return sum(spec.elements_per_token for spec in specs) * dtype.itemsize


class Arena:
    """KV memory of all layers on one device."""

    def __init__(
        self,
        specs: Sequence[KVSpec],
        *,
        blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        try:
            self.layers: list[LayerKV] = [
                _allocate(spec, blocks, block_tokens, dtype, device) for spec in specs
            ]
        except (
            torch.OutOfMemoryError,
            RuntimeError,
        ) as error:  # the CPU allocator raises a bare RuntimeError
            size = blocks * block_tokens * bytes_per_token(specs, dtype)
            raise SetupError(
                f"{device} cannot allocate the KV arena of {size} bytes; give a smaller --kv-cache-bytes"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def scrub(self, block_ids: torch.Tensor) -> None:
        """Replace what is not finite in `block_ids` [n] by zero; finite values keep their bits."""
        for tensor in self._tensors():
            blocks = tensor[block_ids]
            tensor[block_ids] = blocks.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    def _tensors(self) -> list[torch.Tensor]:
        return [
            tensor for layer in self.layers for tensor in (layer if isinstance(layer, tuple) else (layer,))
        ]


def _allocate(
    spec: KVSpec, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
) -> LayerKV:
    match spec:
        case GQA(kv_heads, head_dim):
            shape = (blocks, block_tokens, kv_heads, head_dim)
            return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(
                shape, dtype=dtype, device=device
            )
        case MLA(latent, rope):
            return torch.zeros(blocks, block_tokens, latent + rope, dtype=dtype, device=device)
