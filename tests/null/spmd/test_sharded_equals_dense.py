# SPDX-License-Identifier: MIT
"""Compiled programs of several ranks, run in step by threads, give what one rank gives: prefill, then
decode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tokenspeed import models, weights
from tokenspeed.dist import Mesh
from tokenspeed.layers.step import StepInputs
from tokenspeed.models import GQA, Model

BLOCK_TOKENS = 16
ROWS, TOKENS = 4, 8


class Arena:
    """KV of one rank: row r owns block r."""

    def __init__(self, model: Model, rows: int) -> None:
        def memory(*shape: int) -> torch.Tensor:
            return torch.zeros(rows, BLOCK_TOKENS, *shape, dtype=model.dtype)

        self.layers: list[Any] = [
            (memory(s.kv_heads, s.head_dim), memory(s.kv_heads, s.head_dim))
            if isinstance(s, GQA)
            else memory(s.latent + s.rope)
            for s in model.kv_spec
        ]


def inputs(ids: torch.Tensor, done: int) -> StepInputs:
    """ids [R, n] at positions done..done+n-1 of each row, every token sampled."""
    rows, count = ids.shape
    positions = torch.arange(done, done + count).repeat(rows)
    row_of = torch.arange(rows).repeat_interleave(count)
    starts, contexts = np.arange(0, rows * count + 1, count, np.int32), np.full(rows, done + count, np.int32)
    return StepInputs(
        token_ids=ids.flatten().contiguous(),
        positions=positions,
        write_index=row_of * BLOCK_TOKENS + positions,
        decode_rows=rows if count == 1 else 0,
        rows=rows,
        row_starts=torch.from_numpy(starts),
        context_lens=torch.from_numpy(contexts),
        block_table=torch.arange(rows, dtype=torch.int32).unsqueeze(1),
        sample_index=torch.arange(rows * count),
        row_starts_np=starts,
        context_lens_np=contexts,
    )


def logits(model: Model, prompt: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """[R, n + 1, V]: prefill of `prompt` [R, n], then one decode step of `new` [R, 1]."""
    arena = Arena(model, prompt.shape[0])
    first = model.forward(inputs(prompt, 0), arena).unflatten(0, prompt.shape)
    second = model.forward(inputs(new, prompt.shape[1]), arena).unflatten(0, new.shape)
    return torch.cat((first, second), 1)


def test_sharded_equals_dense(
    config: dict[str, Any], mesh: Mesh, in_world: Callable[..., list[torch.Tensor]]
) -> None:
    ids = torch.randint(0, 160, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(7))
    prompt, new = ids[:, :TOKENS], ids[:, TOKENS:]

    def loaded(rank: int, collectives: Any) -> Model:
        model = models.build(
            config, mesh=mesh.at(rank), dtype="float32", block_tokens=BLOCK_TOKENS, collectives=collectives
        )
        weights.load_dummy(model, seed=3, std=0.15)
        return model

    def work(rank: int, collectives: Any) -> torch.Tensor:
        rows = slice(
            mesh.at(rank).index("dp") * ROWS // mesh.dp, (mesh.at(rank).index("dp") + 1) * ROWS // mesh.dp
        )
        return logits(loaded(rank, collectives), prompt[rows], new[rows])

    dense = models.build(config, dtype="float32", block_tokens=BLOCK_TOKENS)
    weights.load_dummy(dense, seed=3, std=0.15)
    want = logits(dense, prompt, new)
    results = in_world(mesh, work)
    whole = torch.cat([results[dp * mesh.tp] for dp in range(mesh.dp)])
    torch.testing.assert_close(whole, want, atol=1e-4, rtol=1e-4)
    assert want.std() > 0.5  # else the tolerance would prove nothing
