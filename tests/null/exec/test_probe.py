# SPDX-License-Identifier: MIT
"""The largest step is within its limits, touches no more KV than there is, and runs."""

from __future__ import annotations

import torch

from tokenspeed import models, weights
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import BatchLimits
from tokenspeed.exec.probe import largest_step

CPU = torch.device("cpu")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
}


def test_largest_step_is_a_whole_chunk_at_the_end_of_the_longest_context() -> None:
    limits = BatchLimits(slots=4, rows=4, tokens=36, context_tokens=250, block_tokens=16)
    inputs = largest_step(limits, CPU)
    assert inputs.positions.tolist() == list(range(218, 250))
    assert inputs.context_lens.tolist() == [250] == inputs.context_lens_np.tolist()
    assert inputs.row_starts.tolist() == [0, 32]
    assert inputs.block_table.shape == (1, 16)
    assert len(inputs.sample_index) == 4
    assert int(inputs.write_index.max()) < 16


def test_contexts_shorter_than_a_chunk() -> None:
    limits = BatchLimits(slots=4, rows=4, tokens=516, context_tokens=100, block_tokens=16)
    assert largest_step(limits, CPU).positions.tolist() == list(range(100))


def test_largest_step_runs_over_two_blocks() -> None:
    model = models.build(CONFIG, dtype=torch.float32, block_tokens=16)
    weights.load_dummy(model, seed=0)
    limits = BatchLimits(slots=3, rows=3, tokens=40, context_tokens=200, block_tokens=16)
    arena = Arena(model.kv_spec, blocks=2, block_tokens=16, dtype=torch.float32, device=CPU)
    logits = model.forward(largest_step(limits, CPU), arena)
    assert logits.shape == (3, 64)
    assert logits.isfinite().all()
