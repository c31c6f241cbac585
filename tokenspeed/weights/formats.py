# SPDX-License-Identifier: MIT
"""Encodings of a weight in a checkpoint, undone while loading.

In: a checkpoint's `quantization_config`. Out: a `Format` that reads a region of a weight as plain numbers.
What the model then computes in is not decided here. `Plain` is the identity.

    BlockFp8     F8_E4M3 with `<name>_scale_inv`: a float per 128 x 128 block; DeepSeek V3, Kimi K2
    PackedInt4   int32 `<name>_packed` of eight 4-bit values with `<name>_scale` per group; Kimi K2.5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.weights.checkpoint import Checkpoint


class Format(Protocol):
    """How a weight is stored."""

    def stored(self, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
        """The tensors that together hold `name`; all must be in the checkpoint."""
        ...

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        """The shape of `name` once decoded."""
        ...

    def read(self, checkpoint: Checkpoint, name: str, take: tuple[slice, ...]) -> torch.Tensor:
        """The region `take` of `name`, decoded."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Numbers as they are."""

    def stored(self, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
        del checkpoint
        return (name,)

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        return checkpoint.shape(name)

    def read(self, checkpoint: Checkpoint, name: str, take: tuple[slice, ...]) -> torch.Tensor:
        dtype = checkpoint.dtype(name)
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise SetupError(
                f"{name} is stored as {dtype}; config.json has no quantization_config that explains it"
            )
        return checkpoint.read(name, take)


@dataclass(frozen=True, slots=True)
class BlockFp8:
    """8-bit floats with one scale per block; tensors left in 16 or 32 bits are read as they are."""

    rows: int = 128
    columns: int = 128

    def stored(self, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
        encoded = name in checkpoint and checkpoint.dtype(name) == "F8_E4M3"
        return (name, f"{name}_scale_inv") if encoded else (name,)

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        return checkpoint.shape(name)

    def read(self, checkpoint: Checkpoint, name: str, take: tuple[slice, ...]) -> torch.Tensor:
        stored = self.stored(checkpoint, name)
        if len(stored) == 1:
            return Plain().read(checkpoint, name, take)
        weight = checkpoint.read(name, take)
        rows, columns = take
        blocks = (
            slice(rows.start // self.rows, -(-rows.stop // self.rows)),
            slice(columns.start // self.columns, -(-columns.stop // self.columns)),
        )
        scale = checkpoint.read(stored[1], blocks).float()
        row_block = torch.arange(rows.start, rows.stop) // self.rows - blocks[0].start
        column_block = torch.arange(columns.start, columns.stop) // self.columns - blocks[1].start
        decoded = torch.empty(weight.shape, dtype=torch.float32)
        for block in range(scale.shape[0]):  # one stripe at a time: the scales of a stripe are one row
            stripe = row_block == block
            decoded[stripe] = weight[stripe].float() * scale[block, column_block]
        return decoded


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """Symmetric 4-bit integers plus eight, eight to an int32, the first in the lowest bits."""

    group: int

    def stored(self, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
        if name in checkpoint or f"{name}_packed" not in checkpoint:
            return (name,)
        shape = f"{name}_shape"
        return (f"{name}_packed", f"{name}_scale", *((shape,) if shape in checkpoint else ()))

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        stored = self.stored(checkpoint, name)
        if len(stored) == 1:
            return checkpoint.shape(name)
        rows, words = checkpoint.shape(stored[0])
        return (rows, words * 8)

    def read(self, checkpoint: Checkpoint, name: str, take: tuple[slice, ...]) -> torch.Tensor:
        stored = self.stored(checkpoint, name)
        if len(stored) == 1:
            return Plain().read(checkpoint, name, take)
        rows, columns = take
        if columns.start % self.group or columns.stop % self.group or self.group % 8:
            raise SetupError(f"{name}: columns {columns.start}:{columns.stop} cut a group of {self.group}")
        words = checkpoint.read(stored[0], (rows, slice(columns.start // 8, columns.stop // 8)))
        groups = slice(columns.start // self.group, columns.stop // self.group)
        scale = checkpoint.read(stored[1], (rows, groups)).float()
        nibbles = (words.unsqueeze(-1) >> (4 * torch.arange(8, dtype=torch.int32))) & 15
        values = (nibbles - 8).view(words.shape[0], -1, self.group).float()
        return (values * scale.unsqueeze(-1)).view(words.shape[0], -1)


def parse_format(config: Mapping[str, Any] | None) -> Format:
    """The format a checkpoint's `quantization_config` describes; SetupError for one that is not supported."""
    if not config:
        return Plain()
    method = config.get("quant_method")
    if method == "fp8" and config.get("weight_block_size"):
        rows, columns = config["weight_block_size"]
        return BlockFp8(int(rows), int(columns))
    if method == "compressed-tensors" and config.get("format") == "pack-quantized":
        schemes = [group["weights"] for group in config.get("config_groups", {}).values()]
        if len(schemes) == 1 and _is_symmetric_int4(schemes[0]):
            return PackedInt4(group=int(schemes[0]["group_size"]))
    found = f"quant_method {method!r}" + (f", format {config['format']!r}" if "format" in config else "")
    raise SetupError(
        f"checkpoints quantised with {found} are not supported; supported: fp8 with weight_block_size, "
        "compressed-tensors pack-quantized symmetric int4 by group, and plain bf16/fp16/fp32"
    )


def _is_symmetric_int4(weights: Mapping[str, Any]) -> bool:
    return (
        weights.get("num_bits") == 4
        and weights.get("type") == "int"
        and weights.get("strategy") == "group"
        and bool(weights.get("symmetric"))
        and not weights.get("actorder")
    )
