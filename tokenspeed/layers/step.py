# SPDX-License-Identifier: MIT
"""The inputs of one step, as tensors at fixed addresses that `exec` fills and layers read.

Rows are sorted decode first: rows 0..decode_rows-1 have exactly one new token each, which are tokens
0..decode_rows-1; the others extend their context by one or more tokens. Nothing here owns memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed.kernels.api.attention import SharedBlocks


@dataclass(slots=True)
class StepInputs:
    """One batch: T tokens in R rows, S of them sampled. The `_np` fields are host twins of tensors."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64: place of the token in its row's context."""
    write_index: Tensor
    """[T] int64: block * P + offset, flat into an arena."""
    decode_rows: int
    rows: int
    row_starts: Tensor
    """[R + 1] int32: first token of each row."""
    context_lens: Tensor
    """[R] int32: tokens in KV once this step's are written."""
    block_table: Tensor
    """[R, Bmax] int32."""
    sample_index: Tensor
    """[S] int64: the token whose logits each sampled row wants."""
    row_starts_np: NDArray[np.int32]
    context_lens_np: NDArray[np.int32]
    shared: SharedBlocks | None = None
    """Blocks that decode rows share, where kernels are to be told."""


class Arena(Protocol):
    """KV memory: per layer what its ops take for an arena (`layers.kv.LayerKV`)."""

    @property
    def layers(self) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class StepContext:
    """What every call of a program is handed beside its values."""

    inputs: StepInputs
    arena: Arena
    _made: dict[str, Any] = field(default_factory=dict[str, Any])

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returned when `key` was first asked for in this step: work that layers share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
