# SPDX-License-Identifier: MIT
"""The KV arena: the device memory that block ids of the control plane index.

In: what each layer keeps per token, a number of blocks. Out: per layer, tensors of N blocks of P tokens,

    GQA   (k [N, P, K, D], v [N, P, K, D])
    MLA   latent [N, P, L + Dr]

or what holds the same in 8 bits (`kernels.fp8`), a tensor for each of its planes.

Allocated once, never moved, zero at first, so that a block holds finite numbers before it is written. On a
CPU the memory is mapped, not filled: the system commits a page when it is first touched, and start costs
nothing. Does not know which block is whose.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
from collections.abc import Sequence

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.layers.kv import KVSpec, LayerKV, Plane, bytes_per_token


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
            self._planes: list[tuple[torch.Tensor, ...]] = [
                tuple(_allocate(plane, blocks, block_tokens, device) for plane in spec.planes(dtype))
                for spec in specs
            ]
        except (torch.OutOfMemoryError, OSError) as error:
            size = blocks * block_tokens * bytes_per_token(specs, dtype)
            raise SetupError(
                f"{device} cannot allocate the KV arena of {size} bytes; give a smaller --kv-cache-bytes"
            ) from error
        self.layers: list[LayerKV] = [
            spec.joined(planes) for spec, planes in zip(specs, self._planes, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def finite_at(self, write_index: torch.Tensor) -> torch.Tensor:
        """[T] bool: the KV just written at `write_index` [T] is finite.

        Looks at the last layer alone: what is not finite in one layer reaches the next through the residual.
        """
        sums = [
            plane.flatten(0, 1)[write_index].view(len(write_index), -1).sum(-1, dtype=torch.float32)
            for plane in self._planes[-1]
            if plane.element_size() > 1  # what is not finite in 8 bits has a scale that is not
        ]
        return torch.isfinite(sum(sums[1:], sums[0]))

    def scrub(self, block_ids: torch.Tensor) -> None:
        """Replace what is not finite in `block_ids` [n] by zero; finite values keep their bits."""
        for tensor in self.tensors():
            if tensor.element_size() > 1:
                blocks = tensor[block_ids]
                tensor[block_ids] = blocks.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            else:  # e4m3: every bit but the sign of its one NaN is set
                codes = tensor.view(torch.uint8)
                blocks = codes[block_ids]
                codes[block_ids] = blocks.masked_fill_((blocks & 0x7F) == 0x7F, 0)

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor of every layer, in order: [N, P, ...] each."""
        return list(itertools.chain.from_iterable(self._planes))


def _allocate(plane: Plane, blocks: int, block_tokens: int, device: torch.device) -> torch.Tensor:
    shape = (blocks, block_tokens, *plane.shape)
    if device.type != "cpu":
        return torch.zeros(shape, dtype=plane.dtype, device=device)
    return _mapped(math.prod(shape) * plane.dtype.itemsize).view(plane.dtype).view(shape)


def _mapped(size: int) -> torch.Tensor:
    """`size` zero bytes that cost nothing until touched (torch.zeros would write them all)."""
    # Private: a shared mapping (Python's default) is shmem, which takes no huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # advice, which a kernel may not take
            memory.madvise(mmap.MADV_HUGEPAGE)  # attention reads whole blocks from all over: spare the TLB
    return torch.frombuffer(memory, dtype=torch.uint8)
