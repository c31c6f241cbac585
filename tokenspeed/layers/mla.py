# SPDX-License-Identifier: MIT
"""Multi-head latent attention: one cached latent for all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1).

In and out: hidden [T, C], Partial over tp as for any attention. The checkpoint's `kv_b_proj` [H (Dn + Dv), L]
is split at load into w_uk [H, Dn, L] and w_uv [H, L, Dv]. The two ways to attend are the same sum in another
order:

    decode   q w_uk against the latent itself, the result through w_uv: the context stays compressed
    extend   keys and values raised from the latent to every head: less work when tokens are many

A step's extending rows take the way that is less work for them (`extends_absorbed`), where the decode kernel
is made for it.

The latent is whole on every tp rank, heads are spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed import kernels
from tokenspeed.kernels.fp8 import Latents
from tokenspeed.layers.kv import MLA
from tokenspeed.layers.layer import Build, Group, Layer
from tokenspeed.layers.linear import Linear, LinearPair, Projection
from tokenspeed.layers.norm import SliceNorm, norm_weight
from tokenspeed.layers.rope import Rotary
from tokenspeed.layers.step import StepContext
from tokenspeed.spmd.compile import local_units
from tokenspeed.spmd.placement import Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Part, Weight

LATENT_EPS = 1e-6
"""Eps of the inner norms: published models keep the norm's default there, whatever `rms_norm_eps` says."""
ABSORBED_TOKENS_MAX = 0
"""New tokens of a row that the latent path takes at most; 0: none. The costs below cross at about 180, but
rows of many tokens in the latent space have not been checked on a GPU yet (docs/log/0006)."""

RAISING_COST = 1.2
"""What an operation of raising costs, in operations of attention over raised keys: gathering the latents, and
writing and reading what they were raised to, counted in. Measured on an H200, docs/log/0006."""

LATENT_COST = 1.1
"""What an operation of attention in the latent space costs, in the same measure."""


@dataclass(frozen=True, slots=True)
class MLAShape:
    """Sizes of one latent attention, whole. `q_latent` is 0 when queries are projected directly."""

    width: int
    heads: int
    q_latent: int
    latent: int
    nope: int
    rope: int
    value: int
    bias: bool = False
    interleaved: bool = True

    @property
    def q_head(self) -> int:
        return self.nope + self.rope


def extends_absorbed(
    lengths: NDArray[np.int32], contexts: NDArray[np.int32], shape: MLAShape, tokens_max: int
) -> bool:
    """Say whether rows of `lengths` new tokens, `tokens_max` at most, over `contexts` [R] are less work in the
    latent space.

    Raising costs the same for one new token and for a thousand; every (query, key) pair costs more in the
    latent space than over raised keys. Heads cancel.
    """
    if lengths.max() > tokens_max:
        return False
    new, context = lengths.astype(np.float64), contexts.astype(np.float64)
    pairs = float((new * (context - new) + new * (new + 1) / 2).sum())
    raising = shape.latent * (shape.nope + shape.value)
    absorbed = pairs * (2 * shape.latent + shape.rope) * LATENT_COST + float(new.sum()) * raising
    raised = pairs * (shape.nope + shape.rope + shape.value) + float(context.sum()) * raising * RAISING_COST
    return absorbed < raised


def _extending_starts(context: StepContext) -> Tensor:
    """First token of each extending row, counted from the first of them [R + 1]."""
    inputs = context.inputs
    return context.once(
        "starts of extending rows", lambda: inputs.row_starts[inputs.decode_rows :] - inputs.decode_rows
    )


class MLAttend(Layer):
    """q, [.. | latent | k_rope] -> heads: norm of the latent, rope, write, attend."""

    def __init__(self, build: Build, name: str, index: int, shape: MLAShape, rotary: Rotary) -> None:
        kv_b = Part(
            f"{name}.kv_b_proj.weight", (shape.heads * (shape.nope + shape.value), shape.latent), shape.heads
        )
        weights = (
            norm_weight(f"{name}.kv_a_layernorm", shape.latent),
            Weight(f"{name}.kv_b_proj.weight", ((kv_b,),), (Shard(0, "tp"),)),
        )
        super().__init__(build, f"{name}.attend", weights)
        self._shape, self._index, self._rotary = shape, index, rotary
        self._heads = len(local_units(build.mesh, "tp", shape.heads, f"{name} heads"))
        self.kv_spec = MLA(shape.latent, shape.rope, build.kv)
        self._scale = shape.q_head**-0.5 * rotary.config.softmax_factor
        self._norm: Tensor
        self._absorb: Any = None
        self._raise: Any = None
        self._extend_weights: tuple[Any, Any] = (None, None)
        self._bind()

    def _bind(self) -> None:
        build, shape = self.build, self._shape
        heads = {"dtype": build.dtype, "heads": self._heads}
        cached = {
            **heads, "latent": shape.latent, "rope": shape.rope, "block_tokens": build.block_tokens, "kv": build.kv,
        }  # fmt: skip
        self._rope_write = kernels.bind(
            "rope.mla_write", build.device, **cached, interleaved=shape.interleaved
        )
        self._decode = kernels.bind("attention.mla_decode", build.device, **cached)
        self._extend = kernels.bind(
            "attention.mla_extend", build.device, **cached, nope_dim=shape.nope, value_dim=shape.value
        )
        self._may_absorb = self._decode.choice.kernel.band is kernels.Band.TUNED
        self._absorb_write = kernels.bind(
            "rope.mla_absorb_write",
            build.device,
            **cached,
            nope_dim=shape.nope,
            interleaved=shape.interleaved,
        )
        self._heads_out = kernels.bind(
            "linear.heads", build.device, **heads, in_dim=shape.latent, out_dim=shape.value
        )

    @property
    def shares_blocks(self) -> bool:
        return self._decode.shares

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the latent's norm [L] and kv_b [H (Dn + Dv), L], which is split here."""
        self._norm, kv_b = tensors
        shape = self._shape
        per_head = kv_b.view(self._heads, shape.nope + shape.value, shape.latent)
        w_uk = per_head[:, : shape.nope].contiguous()
        w_uv = per_head[:, shape.nope :].transpose(1, 2).contiguous()
        self._absorb = self._absorb_write.prepare(w_uk)
        self._raise = self._heads_out.prepare(w_uv)
        self._extend_weights = self._extend.prepare(w_uk, w_uv)

    def run(self, context: StepContext, q: Tensor, latents: Tensor) -> Tensor:
        """q [T, H (Dn + Dr)], latents [T, .. + L + Dr] -> [T, H Dv]; writes the arena, changes q."""
        inputs, shape = context.inputs, self._shape
        arena: Tensor | Latents = context.arena.layers[self._index]
        q = q.view(q.shape[0], self._heads, shape.q_head)
        kv = latents[:, latents.shape[1] - shape.latent - shape.rope :]
        decoded = inputs.decode_rows
        if decoded == inputs.rows:
            return self._attend_decode(context, q, kv, arena).flatten(1)
        out = q.new_empty((q.shape[0], self._heads, shape.value))
        if decoded:
            out[:decoded] = self._attend_decode(context, q[:decoded], kv[:decoded], arena)
        lengths, contexts = np.diff(inputs.row_starts_np[decoded:]), inputs.context_lens_np[decoded:]
        if self._may_absorb and extends_absorbed(lengths, contexts, shape, ABSORBED_TOKENS_MAX):
            out[decoded:] = self._extend_absorbed(
                context, q[decoded:], kv[decoded:], arena, int(lengths.max())
            )
        else:
            self._extend_raised(context, q[decoded:], kv[decoded:], arena, out[decoded:])
        return out.flatten(1)

    def _attend_decode(self, context: StepContext, q: Tensor, kv: Tensor, arena: Tensor | Latents) -> Tensor:
        inputs, rows, latent = context.inputs, q.shape[0], self._shape.latent
        lens = inputs.context_lens[:rows]
        q_latent, q_rope = self._absorb_write(
            q,
            kv[:, :latent],
            kv[:, latent:],
            self._norm,
            LATENT_EPS,
            self._rotary.table,
            inputs.positions[:rows],
            inputs.write_index[:rows],
            arena,
            self._absorb,
        )
        shared = {"shared": inputs.shared} if inputs.shared is not None and self.shares_blocks else {}
        schedule = context.once("attention.mla_decode", lambda: self._decode.schedule(lens, **shared))
        table = inputs.block_table[:rows]
        attended = self._decode(
            q_latent, q_rope, arena, table, lens, self._scale, schedule=schedule, **shared
        )
        return self._heads_out(attended, self._raise)

    def _extend_absorbed(
        self, context: StepContext, q: Tensor, kv: Tensor, arena: Tensor | Latents, row_tokens_max: int
    ) -> Tensor:
        inputs, decoded, latent = context.inputs, context.inputs.decode_rows, self._shape.latent
        lens = inputs.context_lens[decoded:]
        q_latent, q_rope = self._absorb_write(
            q,
            kv[:, :latent],
            kv[:, latent:],
            self._norm,
            LATENT_EPS,
            self._rotary.table,
            inputs.positions[decoded:],
            inputs.write_index[decoded:],
            arena,
            self._absorb,
        )
        schedule = context.once(
            "attention.mla_decode of extending rows",
            lambda: self._decode.schedule(lens, row_tokens_max, _extending_starts(context)),
        )
        attended = self._decode(
            q_latent,
            q_rope,
            arena,
            inputs.block_table[decoded:],
            lens,
            self._scale,
            row_starts=_extending_starts(context),
            row_tokens_max=row_tokens_max,
            schedule=schedule,
        )
        return self._heads_out(attended, self._raise)

    def _extend_raised(
        self, context: StepContext, q: Tensor, kv: Tensor, arena: Tensor | Latents, out: Tensor
    ) -> None:
        inputs, latent, q_rope = context.inputs, self._shape.latent, q[..., self._shape.nope :]
        decoded = inputs.decode_rows
        self._rope_write(
            q_rope,
            kv[:, :latent],
            kv[:, latent:],
            self._norm,
            LATENT_EPS,
            self._rotary.table,
            inputs.positions[decoded:],
            inputs.write_index[decoded:],
            arena,
            out=q_rope,
        )
        self._extend(
            q,
            arena,
            *self._extend_weights,
            inputs.block_table[decoded:],
            _extending_starts(context),
            inputs.context_lens[decoded:],
            self._scale,
            contexts=inputs.context_lens_np[decoded:].tolist(),
            out=out,
        )

    def calls(self) -> Iterator[Call]:
        shape = self._shape
        yield Call(
            self.name,
            "attend_latent",
            (Edge("q", (Shard(1, "tp"),)), Edge("latents", (Replicate("tp"),))),
            (Edge("heads", (Shard(1, "tp"),), shape.heads * shape.value),),
            self.run,
            self.weights,
        )


class MLAttention(Group):
    """The whole block under `name`, for layer `index`."""

    def __init__(self, build: Build, name: str, index: int, shape: MLAShape, rotary: Rotary) -> None:
        attend = MLAttend(build, name, index, shape, rotary)
        self.kv_spec = attend.kv_spec
        out = Linear(
            build,
            f"{name}.o_proj",
            [Projection(f"{name}.o_proj", shape.width)],
            shape.heads * shape.value,
            spread="columns",
            bias=shape.bias,
            reads="heads",
        )
        super().__init__(*_queries_and_latents(build, name, shape), attend, out)


def _queries_and_latents(build: Build, name: str, shape: MLAShape) -> list[Layer]:
    """hidden -> q, latents, in one matmul; with a query latent it makes that and q is projected from it."""
    kv_a = Projection(f"{name}.kv_a_proj_with_mqa", shape.latent + shape.rope)
    q_rows = shape.heads * shape.q_head
    if not shape.q_latent and not shape.bias:
        q = Projection(f"{name}.q_proj", q_rows, shape.heads)
        return [LinearPair(build, f"{name}.q_kv_a", q, kv_a, shape.width, writes=("q", "latents"))]
    if not shape.q_latent:
        q = [Projection(f"{name}.q_proj", q_rows, shape.heads)]
        return [
            Linear(build, f"{name}.q_proj", q, shape.width, spread="rows", writes="q"),
            Linear(build, f"{name}.kv_a", [kv_a], shape.width, spread="none", bias=True, writes="latents"),
        ]
    q_a = Projection(f"{name}.q_a_proj", shape.q_latent)
    q_b = [Projection(f"{name}.q_b_proj", q_rows, shape.heads)]
    both = Linear(
        build, f"{name}.qkv_a", [q_a, kv_a], shape.width, spread="none", bias=shape.bias, writes="latents"
    )
    norm = SliceNorm(
        build, f"{name}.q_a_layernorm", shape.q_latent, LATENT_EPS, reads="latents", writes="q_latent"
    )
    return [
        both,
        norm,
        Linear(build, f"{name}.q_b_proj", q_b, shape.q_latent, spread="rows", reads="q_latent", writes="q"),
    ]


__all__ = ["LATENT_EPS", "MLAShape", "MLAttend", "MLAttention"]
