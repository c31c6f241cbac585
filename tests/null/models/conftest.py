# SPDX-License-Identifier: MIT
"""Tiny checkpoints in the true file format, and a paged driver that lays steps out from scratch.

The driver shares nothing with `exec`: it scatters each row's blocks over the arena, so that a wrong table,
position or write index cannot pass, and never clears what was there before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tokenspeed import models, weights
from tokenspeed.layers.step import StepInputs
from tokenspeed.models import Model

BLOCK_TOKENS = 16
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
}
SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "llama-biased-tied": (
        "Llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama3-rope": (
        "Llama",
        {
            "num_key_value_heads": 4,
            "rope_scaling": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama-linear": (
        "Llama",
        {"num_key_value_heads": 2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "llama-dynamic": (
        "Llama",
        {"num_key_value_heads": 2, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen2-yarn": ("Qwen2", {"num_key_value_heads": 2, "rope_scaling": YARN}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3Moe", {**MOE, "num_key_value_heads": 2, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3-moe-mixed": (
        "Qwen3Moe",
        {**MOE, "num_key_value_heads": 1, "head_dim": 16, "norm_topk_prob": False, "mlp_only_layers": [1]},
    ),
    "deepseek-v2-lite": (
        "DeepseekV2",
        {
            **MLA,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek-v2": (
        "DeepseekV2",
        {
            **MLA,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 4.0,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **MLA,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-2,  # the norms of the latents keep their own
            "norm_topk_prob": True,
            "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek-v3-yarn-plain": ("DeepseekV3", {**MLA, "n_group": 1, "topk_group": 1, "rope_scaling": YARN}),
    "moonlight": (
        "DeepseekV3",
        {**MLA, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": True},
    ),
    "deepseek-v3-wide": (
        "DeepseekV3",
        {
            **MLA,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_group": 2,
            "topk_group": 1,
            "num_hidden_layers": 2,
        },
    ),
    "deepseek-v3-halves": (
        "DeepseekV3",
        {**MLA, "n_group": 2, "topk_group": 1, "rope_interleave": False, "attention_bias": True},
    ),
}


@dataclass(slots=True)
class Row:
    """One request of the driver: its tokens, its blocks, and how many tokens are in the arena."""

    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    done: int = 0


class Paged:
    """Runs a model step by step over scattered blocks."""

    def __init__(self, model: Model, blocks: int = 96, seed: int = 0) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(seed)
        self.free = torch.randperm(blocks, generator=generator).tolist()
        self.layers = [self._layer(spec, blocks, generator) for spec in model.kv_spec]

    def _layer(self, spec: models.KVSpec, blocks: int, generator: torch.Generator) -> Any:
        return spec.joined(
            [
                torch.randn(blocks, BLOCK_TOKENS, *plane.shape, generator=generator).to(plane.dtype)
                for plane in spec.planes(self.model.dtype)
            ]
        )

    def row(self, tokens: list[int], shared: Row | None = None, shared_tokens: int = 0) -> Row:
        """A new row; with `shared`, its first tokens are read from another row's blocks."""
        assert shared_tokens % BLOCK_TOKENS == 0
        blocks = shared.blocks[: shared_tokens // BLOCK_TOKENS] if shared else []
        return Row(list(tokens), list(blocks), shared_tokens)

    def step(self, batch: list[tuple[Row, int]], *, sampled: str = "last") -> list[torch.Tensor]:
        """Compute `count` more tokens of each row in one step; return each row's logits, in the order given.

        Rows of one token are decoded, the others extended. Logits are those of the "last" new token, of
        "all", or of "none".
        """
        order = sorted(range(len(batch)), key=lambda index: batch[index][1] != 1)
        inputs, spans = self._layout([batch[index] for index in order], sampled)
        logits = self.model.forward(inputs, self)
        results: list[torch.Tensor] = [logits] * len(batch)
        for index, (start, stop) in zip(order, spans, strict=True):
            results[index] = logits[start:stop]
        return results

    def _layout(self, batch: list[tuple[Row, int]], which: str) -> tuple[StepInputs, list[tuple[int, int]]]:
        ids, positions, writes, starts, contexts, sampled, spans = [], [], [], [0], [], [], []
        for row, count in batch:
            stop = row.done + count
            while len(row.blocks) * BLOCK_TOKENS < stop:
                row.blocks.append(self.free.pop())
            for position in range(row.done, stop):
                ids.append(row.tokens[position])
                positions.append(position)
                writes.append(row.blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
            wanted = range(starts[-1], starts[-1] + count)[{"last": -1, "all": 0, "none": count}[which] :]
            spans.append((len(sampled), len(sampled) + len(wanted)))
            sampled += wanted
            starts.append(starts[-1] + count)
            contexts.append(stop)
            row.done = stop
        width = max(len(row.blocks) for row, _ in batch)
        table = [row.blocks + [-1] * (width - len(row.blocks)) for row, _ in batch]
        starts_np, contexts_np = np.array(starts, np.int32), np.array(contexts, np.int32)
        inputs = StepInputs(
            token_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            write_index=torch.tensor(writes),
            decode_rows=sum(count == 1 for _, count in batch),
            rows=len(batch),
            row_starts=torch.from_numpy(starts_np),
            context_lens=torch.from_numpy(contexts_np),
            block_table=torch.tensor(table, dtype=torch.int32),
            sample_index=torch.tensor(sampled, dtype=torch.int64),
            row_starts_np=starts_np,
            context_lens_np=contexts_np,
        )
        return inputs, spans

    def greedy(self, row: Row, tokens: int, chunk: int = 1 << 30) -> torch.Tensor:
        """Prefill in chunks, then append `tokens` greedy ones; return the logits that chose them."""
        kept: list[torch.Tensor] = []
        while len(kept) < tokens:
            (logits,) = self.step([(row, min(chunk, len(row.tokens) - row.done))])
            if row.done == len(row.tokens):
                kept.append(logits[-1])
                row.tokens.append(int(logits[-1].argmax()))
        return torch.stack(kept)


@dataclass(slots=True)
class Twin:
    """A tiny checkpoint on disk and the transformers model that wrote it."""

    directory: Path
    hf: Any

    def ours(self, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
        model = models.build(
            models.read_config(self.directory), dtype=dtype, block_tokens=BLOCK_TOKENS, **options
        )
        weights.load(model, self.directory)
        return model

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Logits [n, V] of the transformers model for every position, in one pass and without a cache."""
        with torch.inference_mode():
            return self.hf(torch.tensor([tokens]), use_cache=False).logits[0].float()


def make_twin(name: str, directory: Path) -> Twin:
    """Write the checkpoint of a case: sharded safetensors, every parameter random, biases and norms too."""
    family, options = CASES[name]
    torch.manual_seed(len(name))
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **options})
    config._attn_implementation = "eager"
    hf = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    hf.set_experts_implementation("eager") if "num_experts_per_tok" in options else None
    with torch.no_grad():
        for parameter_name, parameter in [*hf.named_parameters(), *hf.named_buffers()]:
            if parameter_name.endswith(("e_score_correction_bias", ".bias")):
                parameter.copy_(torch.randn_like(parameter) * 0.1)
            elif "norm" in parameter_name:
                parameter.copy_(1 + torch.randn_like(parameter) * 0.1)
    hf.save_pretrained(directory, max_shard_size="60KB")
    return Twin(directory, hf)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Twin]:
    """The checkpoint of a case, written once a session."""
    made: dict[str, Twin] = {}

    def get(name: str) -> Twin:
        if name not in made:
            made[name] = make_twin(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def paged() -> type[Paged]:
    """The driver."""
    return Paged


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames and "case" not in {
        name
        for mark in metafunc.definition.iter_markers("parametrize")
        for name in str(mark.args[0]).split(",")
    }:
        metafunc.parametrize("case", list(CASES))
