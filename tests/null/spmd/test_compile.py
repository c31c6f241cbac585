# SPDX-License-Identifier: MIT
"""The compiler inserts the least that is right, refuses what no rule allows, and names the edge it
refuses.
"""

from __future__ import annotations

from typing import Any

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh
from tokenspeed.spmd.compile import compile_program
from tokenspeed.spmd.placement import Layout, Partial, Replicate, Shard
from tokenspeed.spmd.program import Call, Edge, Joint, Part, Program, Weight

TP2 = Mesh(tp=2)


def weight(layout: Layout = ()) -> Weight:
    return Weight("w", ((Part("w", (8, 8)),),), layout)


def call(
    op: str,
    reads: list[Edge],
    writes: list[Edge],
    weights: tuple[Weight, ...] = (),
    name: str = "block.it",
) -> Call:
    return Call(name, op, tuple(reads), tuple(writes), lambda *_: None, weights)


def compiled(calls: list[Call], mesh: Mesh = TP2, output: Edge | None = None) -> Program:
    return compile_program(
        "test",
        calls,
        mesh,
        inputs=(
            Edge("x", (Replicate("tp"),), 8),
            Edge("y", (Shard(1, "tp"),), 8),
            Edge("p", (Partial("tp"),), 8),
        ),
        output=output or Edge("out"),
        item_bytes=2,
    )


def kinds(program: Program) -> list[str]:
    return [collective.kind for collective in program.collectives]


def test_column_then_row_needs_one_reduction() -> None:
    column = call(
        "matmul",
        [Edge("x", (Replicate("tp"),))],
        [Edge("h", (Shard(1, "tp"),), 8)],
        (weight((Shard(0, "tp"),)),),
    )
    row = call(
        "matmul",
        [Edge("h", (Shard(1, "tp"),))],
        [Edge("out", (Partial("tp"),), 8)],
        (weight((Shard(1, "tp"),)),),
    )
    assert kinds(compiled([column, row])) == []
    program = compiled([column, row], output=Edge("out", (Replicate("tp"),)))
    assert kinds(program) == ["all_reduce"]
    assert program.collectives[0].bytes_per_row == 8 * 2


def test_sum_of_two_partial_values_is_reduced_once() -> None:
    partial = weight((Shard(1, "tp"),))
    one = call("matmul", [Edge("y")], [Edge("a", (), 8)], (partial,))
    two = call("matmul", [Edge("y")], [Edge("b", (), 8)], (partial,))
    add = call("add", [Edge("a"), Edge("b")], [Edge("out", (), 8)])
    assert kinds(compiled([one, two, add], output=Edge("out", (Replicate("tp"),)))) == ["all_reduce"]


def test_reduction_waits_for_the_first_reader_that_needs_it_and_is_not_repeated() -> None:
    norms = [
        call("norm", [Edge("p")], [Edge(out, (), 8)], (weight(),), name=f"norm.{out}")
        for out in ("out", "again")
    ]
    program = compiled(norms)
    assert [step.name for step in program.steps] == ["-> norm.out", "norm.out", "norm.again"]


def test_spread_tokens_scatter_instead() -> None:
    norm = call("norm", [Edge("p", (Replicate("tp"), Shard(0, "sp")))], [Edge("out", (), 8)], (weight(),))
    assert kinds(compiled([norm], Mesh(tp=2, sp=2))) == ["reduce_scatter"]


def test_one_rank_compiles_to_the_calls_alone() -> None:
    norm = call("norm", [Edge("p")], [Edge("out", (), 8)], (weight(),))
    assert [step.op for step in compiled([norm], Mesh()).steps] == ["norm"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            call(
                "matmul",
                [Edge("y", (Shard(1, "tp"),))],
                [Edge("out", (Replicate("tp"),))],
                (weight((Shard(1, "tp"),)),),
            ),
            ["block.it", "matmul", "along tp", "'out' Replicate(tp)", "S1 | S1 -> P"],
        ),
        (
            call("matmul", [Edge("x", (Replicate("tp"),))], [Edge("out")], (weight((Shard(1, "tp"),)),)),
            ["block.it", "reads 'x' Replicate(tp)", "its weights lie S1"],
        ),
        (
            call("norm", [Edge("nowhere")], [Edge("out")], (weight(),)),
            ["block.it", "'nowhere'", "values so far: p, x, y"],
        ),
        (call("conv", [Edge("x")], [Edge("out")]), ["block.it", "unknown op 'conv'"]),
        (
            call("norm", [Edge("x", (Partial("tp"),))], [Edge("out")], (weight(),)),
            ["block.it", "Partial(sum, tp)"],
        ),
        (
            call("add", [Edge("x", (Partial("tp"),)), Edge("p")], [Edge("out")]),
            ["block.it", "'x' Partial(sum, tp) (is R)"],
        ),
    ],
)
def test_inconsistent_declarations_name_module_edge_and_rules(bad: Call, words: list[str]) -> None:
    with pytest.raises(SetupError) as refused:
        compiled([bad])
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_packed_columns_and_fixed_values_are_never_moved() -> None:
    calls: list[Call] = [
        call("matmul", [Edge("x")], [Edge("h", (), 8, packed=True)], (weight((Shard(0, "tp"),)),)),
        call("norm", [Edge("h")], [Edge("out")], (weight(),), name="norm"),
    ]
    with pytest.raises(SetupError, match="norm: no legal norm"):
        compiled(calls)


def test_what_cannot_be_reached_at_the_end_is_refused() -> None:
    same = call("gated", [Edge("x")], [Edge("out", (), 8)])
    with pytest.raises(SetupError, match=r"output: edge 'out' along tp is R and is needed as P"):
        compiled([same], output=Edge("out", (Partial("tp"),)))


def test_lowering_several_ranks_without_collectives_is_refused() -> None:
    norm = call("norm", [Edge("p")], [Edge("out", (), 8)], (weight(),))
    with pytest.raises(SetupError, match="needs collectives"):
        compiled([norm]).lower()


def test_executable_drops_values_after_their_last_reader() -> None:
    seen: list[Any] = []

    class Big:
        def __del__(self) -> None:
            seen.append("dropped")

    calls = [
        Call("make", "gated", (Edge("x"),), (Edge("h"),), lambda _context, _x: Big()),
        Call("use", "gated", (Edge("h"),), (Edge("k"),), lambda _context, _h: seen.append("used")),
        Call("last", "gated", (Edge("k"),), (Edge("out"),), lambda _context, _k: seen.append("last")),
    ]
    program = compile_program("t", calls, Mesh(), inputs=(Edge("x"),), output=Edge("out"), item_bytes=2)
    program.lower().run(None, 1)
    assert seen == ["used", "dropped", "last"]


def joinable(mesh: Mesh, *, layout: Layout = ()) -> list[str]:
    """What runs of a norm and a product that can do the norm's work too; `layout` is what the product reads."""
    ran: list[str] = []

    def together(_context: Any, constants: str, x: int, r: int) -> tuple[int, int, int]:
        ran.append(f"both with {constants}")
        return x, r, x + r

    def apart(name: str, result: Any) -> Any:
        def run(_context: Any, *_values: Any) -> Any:
            ran.append(name)
            return result

        return run

    stream = (Edge("h", (Shard(0, "tp"),), 8), Edge("r", (Shard(0, "tp"),), 8))
    norm = Call(
        "norm", "norm_add", stream, stream, apart("norm", (1, 2)), (weight(),), constants=lambda: "gain"
    )
    product = Call(
        "product", "matmul", (Edge("h", layout),), (Edge("out", (), 8),), apart("product", 3), (weight(),),
        joint=Joint("norm_add", together),
    )  # fmt: skip
    program = compile_program("t", [norm, product], mesh, inputs=stream, output=Edge("out"), item_bytes=2)

    class Moving:
        def move(self, kind: str, value: Any, *, axis: str, dim: int) -> Any:
            ran.append(f"{kind} over {axis} along {dim}")
            return value

    assert program.lower(Moving()).run(None, 1, 2) == 3
    return ran


def test_a_call_does_the_work_of_the_norm_before_it_unless_something_moves_between_them() -> None:
    assert joinable(Mesh()) == ["both with gain"]
    assert joinable(TP2) == ["both with gain"]
    moved = joinable(TP2, layout=(Replicate("tp"),))
    assert moved == ["norm", "all_gather over tp along 0", "product"]


def test_slices_of_slices_are_cut_outermost_first_and_opened_innermost_first() -> None:
    """dp cuts the columns, tp what dp left; the other way round each rank would hold another's columns."""
    mesh = Mesh(dp=2, tp=2, ep=4)
    cut = call("matmul", [Edge("x")], [Edge("out", (), 8)], (weight((Shard(1, "ep"),)),))
    program = compiled([cut], mesh)
    assert [(c.kind, c.axis) for c in program.collectives] == [("slice", "dp"), ("slice", "tp")]
    wide = call("matmul", [Edge("x")], [Edge("h", (), 8)], (weight((Shard(0, "ep"),)),))
    norm = call("norm", [Edge("h", (Replicate("ep"),))], [Edge("out", (), 8)], (weight(),))
    program = compiled([wide, norm], mesh)
    assert [(c.kind, c.axis) for c in program.collectives] == [("all_gather", "tp"), ("all_gather", "dp")]
