# SPDX-License-Identifier: MIT
"""Have the kernels of steps compiled before a step needs one.

In: how to build the model with fewer layers, and the limits of its steps. Out: how many kernels were compiled,
side by side (`kernels.compiling`): those met by going through steps with a twin, the fewest layers that have
every shape of the model, random weights. Its steps are those of prefill, a whole chunk at the end of the longest
context and shorter prompts, of decode with each number of rows that is recorded, and all sampling. What they
miss is compiled when it is first launched, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from tokenspeed import weights
from tokenspeed.exec import graphs, probe
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch, BatchLimits
from tokenspeed.exec.executor import DeviceExecutor
from tokenspeed.kernels import compiling
from tokenspeed.models import Model
from tokenspeed.sampling import Sampler

_PROMPTS: Final = (1 << 30, 1021, 128, 17)
"""New tokens of the steps that stand for prefill: a whole chunk, and numbers that do and do not divide by 16,
for which Triton compiles apart.
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
        executor.record(Rehearsal(), graphs.sizes_up_to(rows_max))
        sampler.rehearse(min(limits.rows, _SAMPLED_MAX))
    return len(gathered.jobs)


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
