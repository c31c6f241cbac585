# SPDX-License-Identifier: MIT
"""Mixture of experts: route, run the chosen experts, add the experts every token shares.

In and out: hidden [T, C]. Routing is float32 and the same on every rank. Experts are spread by expert over
`ep` where the mesh has it (each rank runs its own on all tokens), else cut inside each expert over `tp`;
either way the result is Partial, as that of the shared experts is, and one reduction serves both. Shared
experts that are cut as the others are run in the same call; where experts are spread they are a dense block of
their own, cut over `tp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenspeed import kernels
from tokenspeed.layers.layer import FP8_BLOCK, Build, Group, Layer
from tokenspeed.layers.mlp import gated_mlp
from tokenspeed.layers.norm import NormConstants
from tokenspeed.layers.step import StepContext
from tokenspeed.spmd.placement import Layout, Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Joint, Part, Weight


@dataclass(frozen=True, slots=True)
class MoEShape:
    """Sizes and routing of one mixture, whole. `shared_ffn` is 0 without shared experts."""

    width: int
    experts: int
    top_k: int
    ffn: int
    shared_ffn: int = 0
    groups: int = 1
    groups_top: int = 1
    scoring: str = "softmax"
    group_score: str = "max"
    normalise: bool = True
    scale: float = 1.0
    biased: bool = False


class Route(Layer):
    """hidden -> expert ids [T, k] and weights [T, k]."""

    def __init__(self, build: Build, name: str, shape: MoEShape) -> None:
        gate = Part(f"{name}.gate.weight", (shape.experts, shape.width))
        bias = Part(f"{name}.gate.e_score_correction_bias", (shape.experts,))
        weights = [Weight(gate.source, ((gate,),), dtype="float32")]
        if shape.biased:
            weights.append(Weight(bias.source, ((bias,),), dtype="float32"))
        super().__init__(build, f"{name}.gate", weights)
        self._shape = shape
        facts: dict[str, Any] = {
            "top_k": shape.top_k,
            "groups": shape.groups,
            "groups_top": shape.groups_top,
            "scoring": shape.scoring,
            "group_score": shape.group_score,
        }
        self._routing = {**facts, "normalise": shape.normalise, "scale": shape.scale}
        facts |= {"x_dtype": build.dtype, "width": shape.width, "experts": shape.experts}
        self._gate = kernels.bind("moe.gate", build.device, **facts)
        self._norm_gate = kernels.bind("moe.norm_gate", build.device, **facts)
        self._joins = self._norm_gate.choice.kernel.name == self._gate.choice.kernel.name
        self._weight: Any = None
        self._bias: Tensor | None = None

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take the gate [E, C] and, where there is one, the bias [E]; both float32."""
        self._weight = self._gate.prepare(tensors[0])
        self._bias = tensors[1] if len(tensors) > 1 else None

    def run(self, context: StepContext, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, C] -> ids [T, k] int32, weights [T, k] float32."""
        return self._gate(x, self._weight, self._bias, **self._routing, write_index=_places(context, x))

    def run_normed(
        self, context: StepContext, constants: NormConstants, x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, residual [T, C] -> the norm of their sum, the sum, and as `run` of the norm."""
        ids, weights, normed, summed = self._norm_gate(
            x,
            residual,
            *constants,
            self._weight,
            self._bias,
            **self._routing,
            write_index=_places(context, x),
        )
        return normed, summed, ids, weights

    def calls(self) -> Iterator[Call]:
        yield Call(
            self.name,
            "route_biased" if self._shape.biased else "route",
            (Edge("hidden"),),
            tuple(
                Edge(value, (), self._shape.top_k, item_bytes=4) for value in ("expert_ids", "expert_weights")
            ),
            self.run,
            self.weights,
            joint=Joint("norm_add", self.run_normed) if self._joins else None,
        )


def _places(context: StepContext, x: Tensor) -> Tensor | None:
    """Where each token is written; None where ranks hold some tokens each."""
    places = context.inputs.write_index
    return places if len(places) == len(x) else None


class Experts(Layer):
    """hidden, ids, weights -> the weighted sum of the chosen experts, plus that of `shared` shared ones."""

    def __init__(self, build: Build, name: str, shape: MoEShape, *, shared: int = 0, writes: str) -> None:
        spread = build.mesh.size("ep") > 1
        w13_at: Layout = (Shard(0, "ep"),) if spread else (Shard(1, "tp"),)
        w2_at: Layout = (Shard(0, "ep"),) if spread else (Shard(2, "tp"),)
        sources = [f"{name}.experts.{expert}" for expert in range(shape.experts)]
        w13 = tuple(
            tuple(Part(f"{source}.{half}_proj.weight", (shape.ffn, shape.width)) for half in ("gate", "up"))
            for source in sources
        )
        w2 = tuple((Part(f"{source}.down_proj.weight", (shape.width, shape.ffn)),) for source in sources)
        weights = [
            Weight(f"{name}.experts.gate_up_proj", w13, w13_at, stacked=True),
            Weight(f"{name}.experts.down_proj", w2, w2_at, stacked=True),
        ]
        if shared:
            source, inner = f"{name}.shared_experts", shared * shape.ffn
            halves = tuple(
                Part(f"{source}.{half}_proj.weight", (inner, shape.width)) for half in ("gate", "up")
            )
            down = Part(f"{source}.down_proj.weight", (shape.width, inner))
            weights += [
                Weight(f"{source}.gate_up_proj.weight", (halves,), (Shard(0, "tp"),)),
                Weight(f"{source}.down_proj.weight", ((down,),), (Shard(1, "tp"),)),
            ]
        super().__init__(build, f"{name}.experts", weights)
        self._reads: Layout = (Replicate("tp"), Replicate("ep"))
        self._writes, self._width = writes, shape.width
        self._local, _, ffn = self.parameters[1].shape
        self._first = build.mesh.index("ep") * self._local
        self._all = self._local == shape.experts
        self._experts = kernels.bind(
            "moe.experts",
            build.device,
            dtype=build.dtype,
            experts=self._local,
            top_k=shape.top_k,
            width=shape.width,
            ffn=ffn,
            shared=shared,
            format=self._held(len(weights), ffn),
        )
        self._weights: Any = None

    def _held(self, count: int, ffn: int) -> str:
        """The format of the weights: gate and up share no block."""
        return "native" if self.build.format == "fp8_block" and ffn % FP8_BLOCK else self.hold_encoded(count)

    def install(self, tensors: Sequence[Tensor]) -> None:
        """Take w13 [E, 2F, C] and w2 [E, C, F], gate-and-up and down of the shared experts, if any, and, where
        they are encoded, the scales of each."""
        values, scales = tensors[: len(self.weights)], tensors[len(self.weights) :]
        absent = (None,) * (4 - len(values)) if scales else ()
        self._weights = self._experts.prepare(*values, *absent, *scales)

    def run(self, context: StepContext, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """x [T, C], ids and weights [T, k] -> [T, C]; experts of other ranks add nothing."""
        del context
        return self._experts(x, ids if self._all else ids - self._first, weights, self._weights)

    def calls(self) -> Iterator[Call]:
        yield Call(
            self.name,
            "experts_shared" if len(self.weights) > 2 else "experts",
            tuple(Edge(value, self._reads) for value in ("hidden", "expert_ids", "expert_weights")),
            (Edge(self._writes, (), self._width),),
            self.run,
            self.weights,
        )


class Add(Layer):
    """routed + shared -> hidden; a sum of two Partial values stays Partial."""

    def __init__(self, build: Build, name: str, width: int) -> None:
        super().__init__(build, f"{name}.add")
        self._width = width

    def run(self, context: StepContext, routed: Tensor, shared: Tensor) -> Tensor:
        """routed, shared [T, C] -> [T, C]."""
        del context
        return routed.add_(shared)

    def calls(self) -> Iterator[Call]:
        reads = (Edge("routed"), Edge("shared"))
        yield Call(self.name, "add", reads, (Edge("hidden", (), self._width),), self.run)

    def leaves(self) -> Iterator[Layer]:
        """Nothing to load."""
        return iter(())


def mixture(build: Build, name: str, shape: MoEShape) -> Group:
    """The whole block under `name`."""
    route = Route(build, name, shape)
    shared, left = divmod(shape.shared_ffn, shape.ffn)
    if not left and (not shared or build.mesh.size("ep") == 1):
        return Group(route, Experts(build, name, shape, shared=shared, writes="hidden"))
    return Group(
        route,
        Experts(build, name, shape, writes="routed"),
        gated_mlp(build, f"{name}.shared_experts", shape.width, shape.shared_ffn, writes="shared"),
        Add(build, name, shape.width),
    )
