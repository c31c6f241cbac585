# SPDX-License-Identifier: MIT
"""What tests of the CPU backend share: every instruction set of this machine, two threads, seeded inputs,
paged arenas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tokenspeed.kernels.cpu import threads


@pytest.fixture(params=threads.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set."""
    best = threads.available_isas()[0]
    threads.set_isa(request.param)
    yield request.param
    threads.set_isa(best)


@pytest.fixture(autouse=True)
def _two_threads_seeded() -> None:
    torch.manual_seed(1)
    if threads.threads() != 2:
        threads.set_threads(2)


@dataclass(frozen=True, slots=True)
class Pages:
    """Rows of given contexts laid out over shuffled blocks; unused blocks and tails hold NaN."""

    table: Tensor
    contexts: Tensor
    block_tokens: int
    blocks: int

    @staticmethod
    def of(contexts: list[int], block_tokens: int) -> Pages:
        width = max(-(-c // block_tokens) for c in contexts)
        order = torch.randperm(len(contexts) * width + 1).to(torch.int32)
        table = order[: len(contexts) * width].view(len(contexts), width).contiguous()
        return Pages(table, torch.tensor(contexts, dtype=torch.int32), block_tokens, len(order))

    def arena(self, *inner: int, dtype: torch.dtype) -> Tensor:
        """An arena [N, P, *inner] that is random where a row's context lies and NaN elsewhere."""
        arena = torch.full((self.blocks, self.block_tokens, *inner), torch.nan, dtype=dtype)
        for row, context in enumerate(self.contexts.tolist()):
            for token in range(0, context, self.block_tokens):
                count = min(self.block_tokens, context - token)
                arena[self.table[row, token // self.block_tokens], :count] = torch.randn(count, *inner).to(
                    dtype
                )
        return arena


def near(actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Assert closeness relative to the scale of the result; NaN anywhere fails."""
    wanted = wanted.double()
    error = (actual.double() - wanted).abs().max().item()
    scale = wanted.abs().max().item() + 1e-6
    bound = {torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    assert error <= bound * scale, f"off by {error:.3g} where values reach {scale:.3g}"
