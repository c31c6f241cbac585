# SPDX-License-Identifier: MIT
"""Multi-head latent attention: one cached latent for all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1).

In and out: hidden [T, C], Partial over tp as for any attention. The checkpoint's `kv_b_proj` [H (Dn + Dv), L]
is split at load into w_uk [H, Dn, L] and w_uv [H, L, Dv]. The two ways to attend are the same sum in another
order:

    decode   q w_uk against the latent itself, the result through w_uv: the context stays compressed
    extend   keys and values raised from the latent to every head: less work when tokens are many

The latent is whole on every tp rank, heads are spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenspeed import kernels
from tokenspeed.layers.kv import MLA
from tokenspeed.layers.layer import Build, Group, Layer
from tokenspeed.layers.linear import Linear, LinearPair, Projection
from tokenspeed.layers.norm import SliceNorm, norm_weight
from tokenspeed.layers.rope import Rotary
from tokenspeed.layers.step import StepContext, StepInputs
from tokenspeed.spmd.compile import local_units
from tokenspeed.spmd.placement import Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Part, Weight

LATENT_EPS = 1e-6
"""Eps of the inner norms: published models keep the norm's default there, whatever `rms_norm_eps` says."""


AHEAD_BYTES_MAX = 40 << 20
"""Weights to fetch during an attention: what a second-level cache of 50 MB keeps beside the attention's own."""


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


class MLAttend(Layer):
    """q, [.. | latent | k_rope] -> heads: norm of the latent, rope, write, attend."""

    def __init__(
        self, build: Build, name: str, index: int, shape: MLAShape, rotary: Rotary, after: Sequence[Layer]
    ) -> None:
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
        self.kv_spec = MLA(shape.latent, shape.rope)
        self._scale = shape.q_head**-0.5 * rotary.config.softmax_factor
        self._norm: Tensor
        self._after = after
        self._ahead: tuple[Tensor | None] | None = None
        self._absorb: Any = None
        self._raise: Any = None
        self._extend_weights: tuple[Any, Any] = (None, None)
        self._bind()

    def _bind(self) -> None:
        build, shape = self.build, self._shape
        heads = {"dtype": build.dtype, "heads": self._heads}
        cached = {**heads, "latent": shape.latent, "rope": shape.rope, "block_tokens": build.block_tokens}
        self._rope_write = kernels.bind(
            "rope.mla_write", build.device, **cached, interleaved=shape.interleaved
        )
        self._decode = kernels.bind("attention.mla_decode", build.device, **cached)
        self._extend = kernels.bind(
            "attention.mla_extend", build.device, **cached, nope_dim=shape.nope, value_dim=shape.value
        )
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

    def _fetched(self) -> Tensor | None:
        """What comes after the attention, listed once all of it is loaded: fetched while the attention waits."""
        if self._ahead is None:
            memory = [
                *self._heads_out.memory(self._raise),
                *(t for layer in self._after for t in layer.memory()),
            ]
            self._ahead = (kernels.pieces(memory, AHEAD_BYTES_MAX),)
        return self._ahead[0]

    def run(self, context: StepContext, q: Tensor, latents: Tensor) -> Tensor:
        """q [T, H (Dn + Dr)], latents [T, .. + L + Dr] -> [T, H Dv]; writes the arena, changes q."""
        inputs, shape = context.inputs, self._shape
        arena: Tensor = context.arena.layers[self._index]
        q = q.view(q.shape[0], self._heads, shape.q_head)
        kv = latents[:, latents.shape[1] - shape.latent - shape.rope :]
        decoded = inputs.decode_rows
        if decoded == inputs.rows:
            return self._attend_decode(context, q, kv, arena).flatten(1)
        out = q.new_empty((q.shape[0], self._heads, shape.value))
        if decoded:
            out[:decoded] = self._attend_decode(context, q[:decoded], kv[:decoded], arena)
        self._attend_extend(inputs, q[decoded:], kv[decoded:], arena, out[decoded:])
        return out.flatten(1)

    def _attend_decode(self, context: StepContext, q: Tensor, kv: Tensor, arena: Tensor) -> Tensor:
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
            ahead=self._fetched(),
        )
        schedule = context.once("attention.mla_decode", lambda: self._decode.schedule(lens))
        table = inputs.block_table[:rows]
        attended = self._decode(q_latent, q_rope, arena, table, lens, self._scale, schedule=schedule)
        return self._heads_out(attended, self._raise)

    def _attend_extend(self, inputs: StepInputs, q: Tensor, kv: Tensor, arena: Tensor, out: Tensor) -> None:
        decoded, latent, q_rope = inputs.decode_rows, self._shape.latent, q[..., self._shape.nope :]
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
            inputs.row_starts[decoded:] - decoded,
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
    """The whole block under `name`, for layer `index`; `after` are the layers of the block that comes next."""

    def __init__(
        self,
        build: Build,
        name: str,
        index: int,
        shape: MLAShape,
        rotary: Rotary,
        after: Iterable[Layer] = (),
    ) -> None:
        out = Linear(
            build,
            f"{name}.o_proj",
            [Projection(f"{name}.o_proj", shape.width)],
            shape.heads * shape.value,
            spread="columns",
            bias=shape.bias,
            reads="heads",
        )
        attend = MLAttend(build, name, index, shape, rotary, (out, *after))
        self.kv_spec = attend.kv_spec
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
