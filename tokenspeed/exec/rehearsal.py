# SPDX-License-Identifier: MIT
"""Have the kernels of steps compiled before a step needs one.

In: how to build the model with fewer layers, and the limits of its steps. Out: how many kernels were compiled,
side by side (`kernels.compiling`): those met by going through steps with a twin, the fewest layers that have
every shape of the model, random weights. Its steps are those of prefill, a whole chunk at the end of the longest
context and shorter prompts, of prompts beside rows that decode, of decode with each number of rows that is
recorded, and all sampling. What they miss is compiled when it is first launched, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tokenspeed import weights
from tokenspeed.exec import graphs, probe
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch, BatchLimits
from tokenspeed.exec.executor import DeviceExecutor
from tokenspeed.kernels import compiling
from tokenspeed.layers.step import StepInputs
from tokenspeed.models import Model
from tokenspeed.sampling import Sampler

_PROMPTS: Final = (1 << 30, 1021, 128, 17)
"""New tokens of the steps that stand for prefill: a whole chunk, and numbers that do and do not divide by 16,
for which Triton compiles apart.
"""
_MIXED: Final = (
    (0, (130, 17), 33),
    (1, (17,), 32),
    (1, (512,), 33),
    (3, (500,), 48),
    (3, (1024, 30), 33),
    (16, (256,), 48),
    (16, (64, 17, 240), 33),
)
"""(rows that decode, new tokens of each prompt, blocks of the longest context) of steps that hold both: numbers that do
and do not divide by 16, again.
"""
_BLOCKS: Final = 2
_SAMPLED_MAX: Final = 256
"""Rows that are sampled at once; of more there is no other kernel."""


class Rehearsal:
    """A `graphs.Recorder` that records nothing: it runs the work once."""

    def record(self, work: Callable[[], Tensor]) -> graphs.Recording:
        logits = work()
        return graphs.Recording(lambda: None, logits)


@torch.inference_mode()
def compile_kernels(
    model: Model,
    shorter: Callable[[int], Model],
    limits: BatchLimits,
    *,
    rows_max: int,
    threads: int,
    share: compiling.Share = compiling.ALL,
) -> int:
    """Compile what steps of `model` launch, with up to `rows_max` decode rows; how many kernels there are.

    `model` is only looked at; `shorter(n)` builds it with n layers. Takes the memory of a twin until it returns.
    With a `share`, the others are left to those who compile them.
    """
    twin = twin_of(model, shorter)
    weights.load_dummy(twin)
    arena = Arena(
        twin.kv_spec,
        blocks=_BLOCKS,
        block_tokens=limits.block_tokens,
        dtype=twin.dtype,
        device=twin.device,
    )
    batch = Batch(replace(limits, rows=rows_max), twin.device)
    sampler = Sampler(slots=limits.slots, vocab=twin.facts.vocab, device=twin.device)
    executor = DeviceExecutor(twin, arena, batch, sampler)
    with compiling.side_by_side(threads, share) as gathered:
        for tokens in _PROMPTS:
            step = replace(limits, tokens=limits.rows + min(tokens, limits.tokens - limits.rows))
            with suppress(
                torch.OutOfMemoryError
            ):  # what steps take is measured later, and refused with advice
                twin.forward(probe.largest_step(step, twin.device), arena)
        for decoding, prompts, blocks in _MIXED:
            rows = decoding + len(prompts)
            if (
                rows <= limits.rows
                and decoding + sum(prompts) <= limits.tokens
                and blocks <= limits.blocks_per_row
            ):
                twin.forward(_mixed_step(decoding, prompts, blocks, limits, twin.device), arena)
        executor.record(Rehearsal(), graphs.sizes_up_to(rows_max))
        sampler.rehearse(min(limits.rows, _SAMPLED_MAX))
    return len(gathered.jobs)


def _mixed_step(
    decoding: int, prompts: tuple[int, ...], blocks: int, limits: BatchLimits, device: torch.device
) -> StepInputs:
    """Rows that decode and prompts, all at the end of a context of so many blocks: zeros, and one block for all."""
    lengths = np.array([1] * decoding + list(prompts), np.int32)
    rows, tokens, context = len(lengths), int(lengths.sum()), blocks * limits.block_tokens
    row_starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    contexts = np.maximum(lengths, context).astype(np.int32)
    places = [np.arange(end - length, end) for end, length in zip(contexts, lengths, strict=True)]
    positions = torch.from_numpy(np.concatenate(places)).to(device)
    width = -(-int(contexts.max()) // limits.block_tokens)
    return StepInputs(
        token_ids=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions=positions,
        write_index=positions % limits.block_tokens,
        decode_rows=decoding,
        rows=rows,
        row_starts=torch.from_numpy(row_starts).to(device),
        context_lens=torch.from_numpy(contexts).to(device),
        block_table=torch.zeros(rows, width, dtype=torch.int32, device=device),
        sample_index=torch.from_numpy(row_starts[1:] - 1).to(device, torch.int64),
        row_starts_np=row_starts,
        context_lens_np=contexts,
    )


def twin_of(model: Model, shorter: Callable[[int], Model]) -> Model:
    """The model with the fewest layers that have every shape of its layers."""
    wanted = _shapes(model)
    for layers in range(1, model.facts.layers):
        twin = shorter(layers)
        if _shapes(twin) == wanted:
            return twin
    return shorter(model.facts.layers)


def _shapes(model: Model) -> set[tuple[str, tuple[tuple[int, ...], ...]]]:
    return {
        (type(layer).__name__, tuple(parameter.shape for parameter in layer.parameters))
        for layer in model.loadables()
    }
