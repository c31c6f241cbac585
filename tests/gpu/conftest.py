# SPDX-License-Identifier: MIT
"""Tiny checkpoints of every family and a core on the GPU, driven by hand. Everything here needs a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tokenspeed.base import config
from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.constraint import Constraint
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.engine import wire
from tokenspeed.engine.boot import Core, boot
from tokenspeed.engine.constraints import Constraints
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import Loop
from tokenspeed.text.grammar.matcher import Vocabulary

VOCAB, NEW_TOKENS = 160, 32
PROMPT_LENGTHS = (5, 40, 70, 17, 33, 96, 1, 64, 8, 130, 21)
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "head_dim": 32,
}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
}
WIDE_MLA = {
    **MLA,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-128": ("Llama", {"head_dim": 128, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3Moe", {**MOE, "norm_topk_prob": True}),
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
        {**MLA, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    ),
    "moonlight": ("DeepseekV3", {**WIDE_MLA, "n_group": 1, "topk_group": 1, "norm_topk_prob": True}),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"))


@dataclass
class Answer:
    """What came of one request."""

    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None


class World:
    """A core on the GPU and its loop; the test is the front."""

    def __init__(self, directory: Path, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "device": "cuda",
            "block_tokens": 16,
            "kv_cache_bytes": 64 << 20,
            "rows_max": 16,
            "prefill_tokens_max": 48,
        }
        self.core: Core = boot(config.build(model=str(directory), **{**defaults, **options}))
        self.answers: dict[int, Answer] = {}
        self._inbox: list[wire.Request] = []
        characters: Future[Vocabulary] = Future()
        characters.set_result(Vocabulary([bytes([i]) if i < 128 else b"" for i in range(VOCAB)]))
        constraints = Constraints(characters, vocab=self.core.model.vocab, threads=2, wake=lambda: None)
        desk = Desk(self.core.scheduler, vocab_size=self.core.model.vocab, constraints=constraints)
        overlap = self.core.resolved.overlap
        self.loop = Loop(desk, self.core.executor, self, self, MonotonicClock(), overlap=overlap)

    @property
    def choices(self) -> dict[str, tuple[str, str]]:
        """What was chosen and why, by name."""
        return {choice.name: (choice.value, choice.reason) for choice in self.core.resolved.choices}

    def drain(self, *, wait: bool) -> list[wire.Request]:
        messages, self._inbox = self._inbox, []
        return messages

    def send(self, report: wire.Report) -> None:
        if isinstance(report, wire.Deltas):
            for delta in report.items:
                answer = self.answers[delta.request_id]
                answer.ids += wire.ids_array(delta.ids).tolist()
                answer.finish, answer.error = delta.finish, delta.error

    def submit(self, prompt: Sequence[int], grammar: str | None = None, **sampling: Any) -> int:
        request_id = len(self.answers) + 1
        self.answers[request_id] = Answer()
        params = SamplingParams(**{"temperature": 0.0, "tokens_max": NEW_TOKENS, "seed": 7, **sampling})
        constraint = None if grammar is None else Constraint(grammar)
        ids = wire.ids_bytes(np.array(prompt))
        self._inbox.append(wire.Generate(request_id, ids, params, constraint=constraint))
        return request_id

    def finish(self) -> None:
        """Turn until every request has ended."""
        self.loop.turn()
        while not all(answer.finish for answer in self.answers.values()):
            self.loop.turn()
        self.loop.turn()
        self.core.scheduler.check()

    def answers_to(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        """Submit all at once and finish."""
        ids = [self.submit(prompt, **sampling) for prompt in prompts]
        self.finish()
        assert [self.answers[i].error for i in ids] == [None] * len(ids)
        return [self.answers[i].ids for i in ids]


@dataclass(frozen=True)
class Checkpoint:
    """A directory, and what transformers says to the prompts."""

    name: str
    directory: Path
    prompts: list[list[int]]
    expected: list[list[int]]


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """The checkpoint of a family, written once a session."""
    made: dict[str, Checkpoint] = {}

    def get(name: str) -> Checkpoint:
        if name not in made:
            made[name] = _make(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(params=list(FAMILIES))
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    return checkpoint_of(request.param)


@pytest.fixture
def world() -> type[World]:
    return World


@torch.inference_mode()
def _make(name: str, directory: Path) -> Checkpoint:
    family, changes = FAMILIES[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model, and other families' tests beside this one
    model_config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    model_config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(model_config).float().eval()
    model.save_pretrained(directory)
    random = np.random.default_rng(1)
    prompts = [random.integers(3, VOCAB, length).tolist() for length in PROMPT_LENGTHS]
    return Checkpoint(name, directory, prompts, [_greedy(model, prompt) for prompt in prompts])


def _greedy(model: Any, prompt: list[int]) -> list[int]:
    ids, cache, said = torch.tensor(prompt)[None], None, []
    for _ in range(NEW_TOKENS):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        said.append(int(out.logits[0, -1].argmax()))
        ids = torch.tensor([[said[-1]]])
    return said
