# SPDX-License-Identifier: MIT
"""Grouped-query attention: fused projection, rope and KV write, attention over pages, output projection.

In and out: hidden [T, C]; between them every rank works on its own heads, so the result is Partial over tp.
Decode rows come first in a step: they take the decode kernel, the others the extend kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenspeed import kernels
from tokenspeed.kernels.fp8 import Heads
from tokenspeed.layers.kv import GQA
from tokenspeed.layers.layer import Build, Group, Layer
from tokenspeed.layers.linear import Linear, Projection
from tokenspeed.layers.norm import norm_weight
from tokenspeed.layers.rope import Rotary
from tokenspeed.layers.step import StepContext, StepInputs
from tokenspeed.spmd.compile import local_units
from tokenspeed.spmd.placement import Shard
from tokenspeed.spmd.program import Call, Edge

Keys = Tensor | Heads
"""The arena of keys, or of values."""


@dataclass(frozen=True, slots=True)
class GQAShape:
    """Sizes of one attention as the whole model has them. `qk_norm_eps` is None without per-head norms."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    out_bias: bool = False
    qk_norm_eps: float | None = None


class GQAttend(Layer):
    """[q | k | v] -> heads: per-head norms where the model has them, rope, write, attend."""

    def __init__(self, build: Build, name: str, index: int, shape: GQAShape, rotary: Rotary) -> None:
        normed = shape.qk_norm_eps is not None
        norms = (
            [norm_weight(f"{name}.{which}_norm", shape.head_dim) for which in ("q", "k")] if normed else []
        )
        super().__init__(build, f"{name}.attend", norms)
        self._shape, self._index, self._rotary = shape, index, rotary
        self._heads = len(local_units(build.mesh, "tp", shape.heads, f"{name} query heads"))
        self._kv_heads = len(local_units(build.mesh, "tp", shape.kv_heads, f"{name} kv heads", repeats=True))
        self.kv_spec = GQA(self._kv_heads, shape.head_dim, build.kv)
        self._scale = shape.head_dim**-0.5
        self._eps = shape.qk_norm_eps or 0.0
        self._norms: tuple[Tensor | None, Tensor | None] = (None, None)
        traits = {
            "dtype": build.dtype,
            "heads": self._heads,
            "kv_heads": self._kv_heads,
            "head_dim": shape.head_dim,
            "block_tokens": build.block_tokens,
            "kv": build.kv,
        }
        turning = {"rotary_dim": rotary.config.rotary_dim, "interleaved": False, "qk_norm": normed}
        self._rope_write = kernels.bind("rope.gqa_write", build.device, **traits, **turning)
        self._decode = kernels.bind("attention.gqa_decode", build.device, **traits)
        self._extend = kernels.bind("attention.gqa_extend", build.device, **traits)

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the norms of q and k [D]."""
        self._norms = (tensors[0], tensors[1])

    def run(self, context: StepContext, qkv: Tensor) -> Tensor:
        """qkv [T, (H + 2K) D] -> [T, H D]; writes this step's keys and values into the arena."""
        inputs = context.inputs
        k_arena, v_arena = context.arena.layers[self._index]
        split = (self._heads, self._kv_heads, self._kv_heads)
        heads = qkv.view(qkv.shape[0], sum(split), self._shape.head_dim)
        q, k, v = heads.split_with_sizes(split, 1)  # `split` has a Python wrapper that costs as much again
        q = self._rope_write(
            q,
            k,
            v,
            self._rotary.table,
            inputs.positions,
            inputs.write_index,
            k_arena,
            v_arena,
            *self._norms,
            self._eps,
        )
        return self._attend(inputs, q, k_arena, v_arena).flatten(1)

    def _attend(self, inputs: StepInputs, q: Tensor, k_arena: Keys, v_arena: Keys) -> Tensor:
        decoded = inputs.decode_rows
        if decoded == inputs.rows:
            return self._decode(q, k_arena, v_arena, inputs.block_table, inputs.context_lens, self._scale)
        out = q.new_empty(q.shape)
        if decoded:
            self._decode(
                q[:decoded],
                k_arena,
                v_arena,
                inputs.block_table[:decoded],
                inputs.context_lens[:decoded],
                self._scale,
                out=out[:decoded],
            )
        self._extend(
            q[decoded:],
            k_arena,
            v_arena,
            inputs.block_table[decoded:],
            inputs.row_starts[decoded:] - decoded,
            inputs.context_lens[decoded:],
            self._scale,
            out=out[decoded:],
        )
        return out

    def calls(self) -> Iterator[Call]:
        yield Call(
            self.name,
            "attend_normed" if self.weights else "attend",
            (Edge("qkv", (Shard(1, "tp"),)),),
            (Edge("heads", (Shard(1, "tp"),), self._shape.heads * self._shape.head_dim),),
            self.run,
            self.weights,
        )

    def leaves(self) -> Iterator[Layer]:
        """Itself, where it has norms to load."""
        if self.weights:
            yield self


class GQAttention(Group):
    """The whole block under `name`, for layer `index`."""

    def __init__(self, build: Build, name: str, index: int, shape: GQAShape, rotary: Rotary) -> None:
        projections = [
            Projection(f"{name}.{which}_proj", heads * shape.head_dim, heads, repeats=which != "q")
            for which, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads))
        ]
        attend = GQAttend(build, name, index, shape, rotary)
        self.kv_spec = attend.kv_spec
        super().__init__(
            Linear(
                build,
                f"{name}.qkv_proj",
                projections,
                shape.width,
                spread="rows",
                bias=shape.bias,
                writes="qkv",
            ),
            attend,
            Linear(
                build,
                f"{name}.o_proj",
                [Projection(f"{name}.o_proj", shape.width)],
                shape.heads * shape.head_dim,
                spread="columns",
                bias=shape.out_bias,
                reads="heads",
            ),
        )
