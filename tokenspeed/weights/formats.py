# SPDX-License-Identifier: MIT
"""Encodings of a weight in a checkpoint, undone while loading.

In: a checkpoint's `quantization_config`. Out: a `Format`, which says what to read for a region of a weight, and
makes plain numbers of what was read, on whatever device that lies. It reads nothing itself, and what the model
then computes in is not decided here. `Plain` is the identity.

    BlockFp8     F8_E4M3 with `<name>_scale_inv`: a float per 128 x 128 block; DeepSeek V3, Kimi K2
    PackedInt4   int32 `<name>_packed` of eight 4-bit values with `<name>_scale` per group; Kimi K2.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.weights.checkpoint import Checkpoint, Region

Take = tuple[slice, ...]


class Format(Protocol):
    """How a weight is stored."""

    def stored(self, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
        """The tensors that together hold `name`; all must be in the checkpoint."""
        ...

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        """The shape of `name` once decoded."""
        ...

    def regions(self, checkpoint: Checkpoint, name: str, take: Take) -> tuple[Region, ...]:
        """What to read for the region `take` of `name`. One alone is the numbers themselves."""
        ...

    def decode(self, parts: Sequence[torch.Tensor], take: Take) -> torch.Tensor:
        """The region `take`, decoded from its `regions` as read."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Numbers as they are."""

    def stored(self, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
        del checkpoint
        return (name,)

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        return checkpoint.shape(name)

    def regions(self, checkpoint: Checkpoint, name: str, take: Take) -> tuple[Region, ...]:
        dtype = checkpoint.dtype(name)
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise SetupError(
                f"{name} is stored as {dtype}; config.json has no quantization_config that explains it"
            )
        return (Region(name, take),)

    def decode(self, parts: Sequence[torch.Tensor], take: Take) -> torch.Tensor:
        del take
        (value,) = parts
        return value


@dataclass(frozen=True, slots=True)
class Encoded:
    """8-bit floats as they are, for kernels that read them with their scales."""

    def stored(self, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
        del checkpoint
        return (name,)

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        return checkpoint.shape(name)

    def regions(self, checkpoint: Checkpoint, name: str, take: Take) -> tuple[Region, ...]:
        if checkpoint.dtype(name) != "F8_E4M3":
            raise SetupError(f"{name} is stored as {checkpoint.dtype(name)}; its layer takes F8_E4M3")
        return (Region(name, take),)

    def decode(self, parts: Sequence[torch.Tensor], take: Take) -> torch.Tensor:
        del take
        (value,) = parts
        return value


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

    def regions(self, checkpoint: Checkpoint, name: str, take: Take) -> tuple[Region, ...]:
        stored = self.stored(checkpoint, name)
        if len(stored) == 1:
            return Plain().regions(checkpoint, name, take)
        rows, columns = take
        blocks = (
            slice(rows.start // self.rows, -(-rows.stop // self.rows)),
            slice(columns.start // self.columns, -(-columns.stop // self.columns)),
        )
        return (Region(name, take), Region(stored[1], blocks))

    def decode(self, parts: Sequence[torch.Tensor], take: Take) -> torch.Tensor:
        if len(parts) == 1:
            return parts[0]
        weight, scale = parts
        rows, columns = take
        row_block = _blocks(rows, self.rows, weight.device)
        column_block = _blocks(columns, self.columns, weight.device)
        return weight.float() * scale.float().index_select(0, row_block).index_select(1, column_block)


def _blocks(span: slice, size: int, device: torch.device) -> torch.Tensor:
    """Which block each index of `span` lies in, counted from the first of them."""
    return torch.arange(span.start, span.stop, device=device) // size - span.start // size


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

    def regions(self, checkpoint: Checkpoint, name: str, take: Take) -> tuple[Region, ...]:
        stored = self.stored(checkpoint, name)
        if len(stored) == 1:
            return Plain().regions(checkpoint, name, take)
        rows, columns = take
        if columns.start % self.group or columns.stop % self.group or self.group % 8:
            raise SetupError(f"{name}: columns {columns.start}:{columns.stop} cut a group of {self.group}")
        words = slice(columns.start // 8, columns.stop // 8)
        groups = slice(columns.start // self.group, columns.stop // self.group)
        return (Region(stored[0], (rows, words)), Region(stored[1], (rows, groups)))

    def decode(self, parts: Sequence[torch.Tensor], take: Take) -> torch.Tensor:
        del take
        if len(parts) == 1:
            return parts[0]
        words, scale = parts
        lanes = 4 * torch.arange(8, dtype=torch.int32, device=words.device)
        values = ((words.unsqueeze(-1) >> lanes) & 15) - 8
        scaled = values.view(words.shape[0], -1, self.group).float() * scale.float().unsqueeze(-1)
        return scaled.view(words.shape[0], -1)


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
