# SPDX-License-Identifier: MIT
"""A model: what a family's file is made into by the compiler.

In: a `Family` (its modules in order, and facts). Out: a `Model` that loads (`weights.load`), states what it
needs (`facts`, `kv_spec`), prints (`program`) and runs (`forward`). Building allocates nothing; memory is
taken by loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenspeed.layers.embedding import ROWS, Embedding, Head, Select
from tokenspeed.layers.kv import KVSpec, bytes_per_token
from tokenspeed.layers.layer import Build, Layer, Module
from tokenspeed.layers.norm import RmsNorm
from tokenspeed.layers.rope import Rotary
from tokenspeed.layers.step import Arena, StepContext, StepInputs
from tokenspeed.spmd.compile import compile_program
from tokenspeed.spmd.placement import Replicate
from tokenspeed.spmd.program import Collectives, Edge, Executable, Program
from tokenspeed.weights.names import NameRules


class Attention(Module, Protocol):
    """An attention block: it also says what it caches."""

    @property
    def kv_spec(self) -> KVSpec: ...


@dataclass(frozen=True, slots=True)
class Trunk:
    """Sizes every family has."""

    layers: int
    width: int
    vocab: int
    eps: float
    tied: bool
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Family:
    """One checkpoint's model as its family's file describes it.

    `blocks` are (attention, feed-forward) per layer; the norms around them, both ends and the streams are the
    same in every family and are added here.
    """

    trunk: Trunk
    rotary: Rotary
    blocks: Sequence[tuple[Attention, Module]]
    names: NameRules


@dataclass(frozen=True, slots=True)
class Facts:
    """What planning needs to know of a model, on this rank. `kv_bytes_per_token` counts all layers."""

    architecture: str
    layers: int
    width: int
    vocab: int
    context_tokens: int
    eos_ids: tuple[int, ...]
    dtype: torch.dtype
    parameter_bytes: int
    kv_bytes_per_token: int


class Model:
    """A compiled model; a `weights.Target` until loaded, a function of `StepInputs` after."""

    def __init__(
        self,
        family: Family,
        build: Build,
        *,
        architecture: str,
        eos_ids: tuple[int, ...],
        quantization_config: Mapping[str, Any] | None,
        collectives: Collectives | None = None,
    ) -> None:
        self.dtype = build.dtype
        self.device = build.device.torch
        self.names = family.names
        self.quantization_config = quantization_config
        self.kv_spec: list[KVSpec] = [attention.kv_spec for attention, _ in family.blocks]
        self._rotary = family.rotary
        self._modules = _assemble(family, build)
        self.program: Program = compile_program(
            architecture,
            chain.from_iterable(module.calls() for module in self._modules),
            build.mesh,
            inputs=(
                Edge("tokens", ROWS, columns=1, item_bytes=8),
                Edge("sampled", ROWS, columns=1, item_bytes=8, fixed=True),
            ),
            output=Edge("logits", (Replicate("tp"),)),
            item_bytes=build.dtype.itemsize,
        )
        self._collectives = collectives
        self._executable: Executable | None = None
        self.facts = Facts(
            architecture=architecture,
            layers=family.trunk.layers,
            width=family.trunk.width,
            vocab=family.trunk.vocab,
            context_tokens=family.trunk.context_tokens,
            eos_ids=eos_ids,
            dtype=build.dtype,
            parameter_bytes=sum(_bytes(layer, build) for layer in self.loadables()),
            kv_bytes_per_token=bytes_per_token(self.kv_spec, build.dtype),
        )

    def loadables(self) -> Iterator[Layer]:
        """The layers that hold weights, in loading order."""
        return chain.from_iterable(module.leaves() for module in self._modules)

    @property
    def shares_blocks(self) -> bool:
        """Whether decode steps gain by `StepInputs.shared`."""
        return any(layer.shares_blocks for layer in self.loadables())

    def finish(self) -> None:
        """Compute what is not loaded (angles) and lower the program; called once, when weights are in."""
        self._rotary.make(self.device)
        self._executable = self.program.lower(self._collectives)

    @torch.inference_mode()
    def forward(self, inputs: StepInputs, arena: Arena) -> Tensor:
        """Run one step: write its KV into `arena`, return logits [S, V] float32 of its sampled rows."""
        assert self._executable is not None, "weights.load comes before forward"
        return self._executable.run(StepContext(inputs, arena), inputs.token_ids, inputs.sample_index)


def _assemble(family: Family, build: Build) -> list[Module]:
    """The whole model in order: embedding, blocks between norms, the sampled rows, final norm, head."""
    trunk = family.trunk
    embedding = Embedding(build, "model.embed_tokens", trunk.vocab, trunk.width)
    modules: list[Module] = [embedding]
    for index, (attention, feed_forward) in enumerate(family.blocks):
        name = f"model.layers.{index}"
        before = RmsNorm(
            build,
            f"{name}.input_layernorm",
            trunk.width,
            trunk.eps,
            kind="add" if index else "first",
        )
        after = RmsNorm(build, f"{name}.post_attention_layernorm", trunk.width, trunk.eps, kind="add")
        modules += [before, attention, after, feed_forward]
    whole = (
        Replicate("tp"),
    )  # rows to sample are few and indexed by token: they are not spread over tp again
    return [
        *modules,
        Select(build, "hidden", trunk.width),
        Select(build, "residual", trunk.width, layout=whole),
        RmsNorm(build, "model.norm", trunk.width, trunk.eps, kind="add", layout=whole),
        Head(build, "lm_head", trunk.vocab, trunk.width, tied=embedding if trunk.tied else None),
    ]


def _bytes(layer: Layer, build: Build) -> int:
    return sum(parameter.bytes(build.dtype.itemsize) for parameter in layer.parameters)
