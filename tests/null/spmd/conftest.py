# SPDX-License-Identifier: MIT
"""Small configs of every family, and a world of ranks as threads in which compiled programs really run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokenspeed.dist import Mesh

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 160,
    "max_position_embeddings": 128,
    "torch_dtype": "bfloat16",
}
MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "architectures": ["LlamaForCausalLM"], "attention_bias": True},
    "qwen3": {**SMALL, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "qwen3_moe": {
        **SMALL,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "deepseek": {**SMALL, **MLA, "architectures": ["DeepseekV3ForCausalLM"]},
    "moonlight": {**SMALL, **MLA, "q_lora_rank": None, "architectures": ["DeepseekV3ForCausalLM"]},
}
MESHES = {
    "one": Mesh(),
    "tp2": Mesh(tp=2),
    "tp4": Mesh(tp=4),
    "tp8": Mesh(tp=8),
    "tp2-sp2": Mesh(tp=2, sp=2),
    "dp2": Mesh(dp=2),
    "dp2-ep2": Mesh(dp=2, ep=2),
    "tp4-ep4": Mesh(tp=4, ep=4),
    "dp2-tp2-ep4": Mesh(dp=2, tp=2, ep=4),
}


class World:
    """Collectives among threads: each rank leaves its tensor, waits for its group, and combines what lies
    there.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._barriers: dict[tuple[int, ...], threading.Barrier] = {}
        self._left: dict[tuple[tuple[int, ...], int], torch.Tensor] = {}
        self._lock = threading.Lock()
        self.moved: list[str] = []

    def rank(self, rank: int) -> RankInWorld:
        return RankInWorld(self, self.mesh.at(rank))

    def exchange(self, mesh: Mesh, axis: str, value: torch.Tensor) -> list[torch.Tensor]:
        group = mesh.group(axis)
        with self._lock:
            barrier = self._barriers.setdefault(group, threading.Barrier(len(group)))
        self._left[group, mesh.rank] = value.clone()
        barrier.wait(timeout=60)
        parts = [self._left[group, rank] for rank in group]
        barrier.wait(timeout=60)
        return parts


class RankInWorld:
    """One rank's `Collectives`."""

    def __init__(self, world: World, mesh: Mesh) -> None:
        self._world, self._mesh = world, mesh

    def move(self, kind: str, value: torch.Tensor, *, axis: str, dim: int) -> torch.Tensor:
        ranks, index = self._mesh.size(axis), self._mesh.index(axis)
        parts = [value] if kind == "slice" else self._world.exchange(self._mesh, axis, value)
        if kind == "slice":
            return value.chunk(ranks, dim)[index].contiguous()
        if kind == "all_reduce":
            return torch.stack(parts).sum(0)
        if kind == "reduce_scatter":
            return torch.stack(parts).sum(0).chunk(ranks, dim)[index].contiguous()
        if kind == "all_gather":
            return torch.cat(parts, dim)
        assert kind == "all_to_all"
        return torch.cat(parts, 1 - dim).chunk(ranks, dim)[index].contiguous()


@pytest.fixture
def in_world() -> Callable[..., list[Any]]:
    """Run `work(rank, collectives)` on every rank of a mesh at once; return the results by rank."""

    def run(mesh: Mesh, work: Callable[[int, RankInWorld], Any]) -> list[Any]:
        world = World(mesh)
        results: list[Any] = [None] * mesh.ranks
        errors: list[BaseException] = []

        def target(rank: int) -> None:
            try:
                results[rank] = work(rank, world.rank(rank))
            except BaseException as error:
                errors.append(error)
                for barrier in world._barriers.values():
                    barrier.abort()
                raise

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(mesh.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    return run


@pytest.fixture(params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"name": request.param, **CONFIGS[request.param]}


@pytest.fixture(params=list(MESHES))
def mesh(request: pytest.FixtureRequest) -> Mesh:
    return MESHES[request.param]


@pytest.fixture
def mesh_name(mesh: Mesh) -> str:
    return next(name for name, value in MESHES.items() if value == mesh)
