# SPDX-License-Identifier: MIT
"""The harness catches what it promises to: each kind of wrong kernel is planted and must be told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels import AtLeast, Band, Kernel, MultipleOf, Needs, Plain, describe
from tokenspeed.kernels.check import faults, grid
from tokenspeed.kernels.ref import attention, dense, rope
from tokenspeed.kernels.registry import Registry


def rms_off_by_eps(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    return dense.rms(x, weight, eps + 1e-2, out=out)


def rms_leaves_the_last_column(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    result = torch.empty_like(x) if out is None else out
    result[:, :-1] = dense.rms(x, weight, eps)[:, :-1]
    return result


def rms_writes_its_input(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    result = dense.rms(x, weight, eps, out=out)
    x.zero_()
    return result


def rms_ignores_out(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    return dense.rms(x, weight, eps)


def rms_widens(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    return dense.rms(x.double(), weight, eps) if out is None else dense.rms(x, weight, eps, out=out)


def decode_reads_past_the_context(
    q: Tensor,
    k_arena: Tensor,
    v_arena: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    **kw: Any,
) -> Tensor:
    return attention.gqa_decode(q, k_arena, v_arena, block_table, context_lens + 1, scale, **kw)


def write_touches_a_neighbour(*args: Tensor, **kw: Any) -> Tensor:
    result = rope.gqa_write(*args, **kw)  # type: ignore[arg-type]
    kw["k_arena"][-1, -1] += 1
    return result


PLANTED: list[tuple[str, Callable[..., Any], str]] = [
    ("norm.rms", rms_off_by_eps, "output 0 differs at"),
    ("norm.rms", rms_leaves_the_last_column, "nan, reference"),
    ("norm.rms", rms_writes_its_input, "x was changed"),
    ("norm.rms", rms_ignores_out, "the result is not the tensor given as out"),
    ("norm.rms", rms_widens, "output 0 is float64"),
    ("attention.gqa_decode", decode_reads_past_the_context, "output 0 differs"),
    ("rope.gqa_write", write_touches_a_neighbour, "k_arena differs"),
]


@pytest.mark.parametrize(("name", "wrong", "told"), PLANTED, ids=[wrong.__name__ for _, wrong, _ in PLANTED])
def test_planted_fault_is_told(references: Registry, name: str, wrong: Callable[..., Any], told: str) -> None:
    op = references.op(name)
    kernel = Kernel(name, "wrong", Needs(), Band.FAST, Plain(wrong, call_traits=op.reference.call_traits))
    traits = next(grid(op, Needs(dtype={torch.float32})))
    found = faults(op, kernel, traits, op.sizes[1], describe("cpu"), 0)
    assert any(re.search(told, fault) for fault in found), found


def test_grid_shows_every_value_in_a_legal_whole(references: Registry) -> None:
    op = references.op("rope.gqa_write")
    tried = list(grid(op, Needs()))
    for trait in op.traits:
        assert {traits[trait.name] for traits in tried} == set(trait.grid)
    assert all(op.legal(traits) is None for traits in tried)
    assert tried == list(grid(op, Needs()))


def test_grid_keeps_to_the_needs(references: Registry) -> None:
    op = references.op("norm.rms")
    tried = list(grid(op, Needs(dtype={torch.bfloat16}, width=MultipleOf(7))))
    assert sorted((str(t["dtype"]), t["width"]) for t in tried) == [
        ("torch.bfloat16", 7),
        ("torch.bfloat16", 21),
    ]
    assert [t["width"] for t in grid(op, Needs(dtype=torch.float32, width=AtLeast(4096)))] == [4096]


def test_needs_that_leave_nothing_to_try_are_an_error(references: Registry) -> None:
    with pytest.raises(SetupError, match="no value of dtype satisfies"):
        list(grid(references.op("norm.rms"), Needs(dtype={torch.int8})))
    with pytest.raises(SetupError, match="no legal combination"):
        list(grid(references.op("attention.gqa_decode"), Needs(heads={3}, kv_heads={2})))
