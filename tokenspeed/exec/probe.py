# SPDX-License-Identifier: MIT
"""What steps take of a GPU's memory beside weights and KV, found by running the largest.

In: a loaded model and the limits of its steps. Out: bytes, which the KV arena must leave free. The largest
step is a whole prefill chunk at the end of the longest context; the largest graph is that of the most rows, in
whose memory the others live. Both run over a few blocks of KV that stand for all of them, and leave nothing
behind but compiled kernels. Counts what this process takes, whatever else uses the device; what graphs cost the
driver (about a megabyte each) is left to the share of memory that is not filled. Decides nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.exec import graphs
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch, BatchLimits
from tokenspeed.exec.executor import DeviceExecutor
from tokenspeed.layers.step import StepInputs
from tokenspeed.models import Model
from tokenspeed.sampling import Sampler

_BLOCKS = 2


@torch.inference_mode()
def step_bytes(model: Model, limits: BatchLimits, *, graph_rows_max: int) -> int:
    """Bytes that the largest step and all graphs take; `graph_rows_max` is 0 without graphs."""
    arena = Arena(
        model.kv_spec,
        blocks=_BLOCKS,
        block_tokens=limits.block_tokens,
        dtype=model.dtype,
        device=model.device,
    )
    try:
        prefill_bytes = _peak_bytes(model, arena, largest_step(limits, model.device))
    except torch.OutOfMemoryError as error:
        raise SetupError(
            f"a step of {limits.tokens - limits.rows} prompt tokens at the end of a context of "
            f"{limits.context_tokens} takes more than what {model.device} has free beside the weights; give a "
            "smaller --prefill-tokens-max or --max-model-len"
        ) from error
    graph_bytes = _graph_bytes(model, arena, limits, graph_rows_max) if graph_rows_max else 0
    torch.cuda.empty_cache()
    return prefill_bytes + graph_bytes


def largest_step(limits: BatchLimits, device: torch.device) -> StepInputs:
    """The inputs of the step that takes most: its tokens are zeros, its blocks all the same."""
    tokens = min(limits.tokens - limits.rows, limits.context_tokens)
    row_starts, context_lens = np.array([0, tokens], np.int32), np.array([limits.context_tokens], np.int32)
    positions = torch.arange(limits.context_tokens - tokens, limits.context_tokens, device=device)
    return StepInputs(
        token_ids=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions=positions,
        write_index=positions % limits.block_tokens,
        decode_rows=0,
        rows=1,
        row_starts=torch.from_numpy(row_starts).to(device),
        context_lens=torch.from_numpy(context_lens).to(device),
        block_table=torch.zeros(1, limits.blocks_per_row, dtype=torch.int32, device=device),
        sample_index=torch.zeros(limits.rows, dtype=torch.int64, device=device),
        row_starts_np=row_starts,
        context_lens_np=context_lens,
    )


def _peak_bytes(model: Model, arena: Arena, inputs: StepInputs) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    model.forward(inputs, arena)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved() - before


def _graph_bytes(model: Model, arena: Arena, limits: BatchLimits, rows_max: int) -> int:
    batch = Batch(replace(limits, rows=rows_max), model.device)
    sampler = Sampler(slots=limits.slots, vocab=model.facts.vocab, device=model.device)
    executor = DeviceExecutor(model, arena, batch, sampler)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    try:
        recorded = executor.record(graphs.GraphRecorder(model.device), (rows_max,))
    except graphs.WaitsError:
        return 0
    taken = torch.cuda.memory_reserved() - before
    del recorded, executor
    return max(0, taken)
