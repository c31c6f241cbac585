# SPDX-License-Identifier: MIT
"""Have the kernels of steps compiled before a step needs one.

In: a loaded model and the limits of its steps. Out: how many kernels were compiled, all side by side
(`kernels.compiling`): those of prefill, whole chunks at the end of the longest context and short prompts, and of
decode with each number of rows that is recorded. Launches none of them and changes nothing but Triton's cache;
what is missed is compiled when it is first launched, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

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


class Rehearsal:
    """A `graphs.Recorder` that records nothing: it runs the work once."""

    def record(self, work: Callable[[], Tensor]) -> graphs.Recording:
        logits = work()
        return graphs.Recording(lambda: None, logits)


@torch.inference_mode()
def compile_kernels(model: Model, limits: BatchLimits, *, rows_max: int, threads: int) -> int:
    """Compile what steps of up to `rows_max` decode rows and of a chunk of prompt launch, in so many threads."""
    arena = Arena(
        model.kv_spec,
        blocks=_BLOCKS,
        block_tokens=limits.block_tokens,
        dtype=model.dtype,
        device=model.device,
    )
    batch = Batch(replace(limits, rows=rows_max), model.device)
    sampler = Sampler(slots=limits.slots, vocab=model.facts.vocab, device=model.device)
    executor = DeviceExecutor(model, arena, batch, sampler)
    with compiling.side_by_side(threads) as gathered:
        for tokens in _PROMPTS:
            step = replace(limits, tokens=limits.rows + min(tokens, limits.tokens - limits.rows))
            with suppress(torch.OutOfMemoryError):  # what comes next measures, and says what would fit
                model.forward(probe.largest_step(step, model.device), arena)
        executor.record(Rehearsal(), graphs.sizes_up_to(rows_max))
        sampler.rehearse()
    return len(gathered.jobs)
