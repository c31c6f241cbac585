# SPDX-License-Identifier: MIT
"""The KV arena: the device memory that block ids of the control plane index.

In: what each layer keeps per token, a number of blocks. Out: per layer, tensors of N blocks of P tokens,

    GQA   (k [N, P, K, D], v [N, P, K, D])
    MLA   latent [N, P, L + Dr]

Allocated once, never moved, zero at first, so that a block holds finite numbers before it is written. On a
CPU the memory is mapped, not filled: the system commits a page when it is first touched, and start costs
nothing. Does not know which block is whose.
"""

from __future__ import annotations

import contextlib
import math
import mmap
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
        except (torch.OutOfMemoryError, OSError) as error:
            size = blocks * block_tokens * bytes_per_token(specs, dtype)
            raise SetupError(
                f"{device} cannot allocate the KV arena of {size} bytes; give a smaller --kv-cache-bytes"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def finite_at(self, write_index: torch.Tensor) -> torch.Tensor:
        """[T] bool: the KV just written at `write_index` [T] is finite.

        Looks at the last layer alone: what is not finite in one layer reaches the next through the residual.
        """
        last = self.layers[-1]
        sums = [
            tensor.flatten(0, 1)[write_index].flatten(1).sum(-1, dtype=torch.float32)
            for tensor in (last if isinstance(last, tuple) else (last,))
        ]
        return torch.isfinite(sums[0] if len(sums) == 1 else sums[0] + sums[1])

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
    def zeros(*shape: int) -> torch.Tensor:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        return _mapped(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)

    match spec:
        case GQA(kv_heads, head_dim):
            shape = (blocks, block_tokens, kv_heads, head_dim)
            return zeros(*shape), zeros(*shape)
        case MLA(latent, rope):
            return zeros(blocks, block_tokens, latent + rope)


def _mapped(size: int) -> torch.Tensor:
    """`size` zero bytes that cost nothing until touched (torch.zeros would write them all)."""
    # Private: a shared mapping (Python's default) is shmem, which takes no huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # advice, which a kernel may not take
            memory.madvise(mmap.MADV_HUGEPAGE)  # attention reads whole blocks from all over: spare the TLB
    return torch.frombuffer(memory, dtype=torch.uint8)
