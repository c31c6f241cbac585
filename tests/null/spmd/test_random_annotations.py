# SPDX-License-Identifier: MIT
"""Any annotation is either refused by name or right: random programs on random meshes against one rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh
from tokenspeed.spmd.compile import compile_program, shard
from tokenspeed.spmd.placement import Layout, Partial, Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Part, Program, Weight

SIZE = 8
MESHES = [Mesh(tp=2), Mesh(dp=2), Mesh(tp=4), Mesh(dp=2, tp=2), Mesh(dp=2, tp=2, ep=4), Mesh(tp=2, sp=2)]
PLACEMENTS = [
    kind
    for axis in ("tp", "dp", "ep", "sp")
    for kind in (Replicate(axis), Shard(0, axis), Shard(1, axis), Partial(axis))
]
layouts = st.lists(st.sampled_from(PLACEMENTS), max_size=1).map(tuple)
weight_layouts = st.sampled_from(
    [(), (Shard(0, "tp"),), (Shard(1, "tp"),), (Shard(1, "ep"),), (Shard(0, "dp"),)]
)


@dataclass(frozen=True)
class Node:
    """A step to be: op, which earlier values it reads, and what is declared of it."""

    op: str
    reads: tuple[int, ...]
    read_layouts: tuple[Layout, ...]
    write_layout: Layout
    weight_layout: Layout


@st.composite
def programs(draw: st.DrawFn) -> tuple[Node, ...]:
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(["matmul", "matmul", "add", "norm"]))
        reads = tuple(draw(st.integers(0, index)) for _ in range(2 if op == "add" else 1))
        placed = draw(weight_layouts) if op == "matmul" else ()
        nodes.append(Node(op, reads, tuple(draw(layouts) for _ in reads), draw(layouts), placed))
    return tuple(nodes)


def tensor(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)


def call(index: int, node: Node, mesh: Mesh) -> Call:
    name = f"step{index}"
    weights: tuple[Weight, ...] = ()
    if node.op != "add":
        shape = (SIZE, SIZE) if node.op == "matmul" else (SIZE,)
        weights = (Weight(name, ((Part(name, shape),),), node.weight_layout),)

    def run(_context: Any, *values: torch.Tensor) -> torch.Tensor:
        if node.op == "add":
            return values[0] + values[1]
        if node.op == "norm":
            return values[0] / values[0].square().mean(-1, keepdim=True).sqrt()
        (fill,) = shard(weights[0], mesh).fills
        return values[0] @ tensor(name)[fill.take].T

    reads = tuple(
        Edge(f"v{read}", layout) for read, layout in zip(node.reads, node.read_layouts, strict=True)
    )
    return Call(name, node.op, reads, (Edge(f"v{index + 1}", node.write_layout, SIZE),), run, weights)


def compiled(nodes: tuple[Node, ...], mesh: Mesh) -> Program:
    return compile_program(
        "random",
        [call(index, node, mesh) for index, node in enumerate(nodes)],
        mesh,
        inputs=(Edge("v0", (Shard(0, "dp"),), SIZE),),
        output=Edge(f"v{len(nodes)}", (Replicate("tp"), Replicate("dp"))),
        item_bytes=8,
    )


def refused(nodes: tuple[Node, ...], mesh: Mesh) -> str:
    """Why the compiler refuses a program; empty when it does not."""
    try:
        compiled(nodes, mesh)
    except SetupError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def verdicts() -> Counter[str]:
    return Counter()


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(nodes=programs(), mesh=st.sampled_from(MESHES))
def test_accepted_programs_are_right_and_others_are_refused_by_name(
    nodes: tuple[Node, ...], mesh: Mesh, in_world: Callable[..., list[torch.Tensor]], verdicts: Counter[str]
) -> None:
    refusal = refused(nodes, mesh)
    verdicts["refused" if refusal else "accepted"] += 1
    if refusal:
        assert refusal.startswith(("step", "output"))
        return

    def work(rank: int, collectives: Any) -> torch.Tensor:
        here = mesh.at(rank)
        return (
            compiled(nodes, here).lower(collectives).run(None, tensor("x").chunk(mesh.dp)[here.index("dp")])
        )

    plain = tuple(Node(n.op, n.reads, tuple(() for _ in n.reads), (), ()) for n in nodes)
    want = compiled(plain, Mesh()).lower().run(None, tensor("x"))
    for result in in_world(mesh, work):
        torch.testing.assert_close(result, want, atol=1e-9, rtol=1e-9)


def test_both_verdicts_were_reached_often(verdicts: Counter[str]) -> None:
    if not verdicts:
        pytest.skip("runs after the test above")
    assert min(verdicts["refused"], verdicts["accepted"]) >= 80, verdicts
