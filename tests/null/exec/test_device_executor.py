# SPDX-License-Identifier: MIT
"""Steps that are replayed say what steps that are computed say, padded or not; the double replays on a CPU.

The double runs the recorded work again. What it cannot show (that the work is recorded whole) is tested with
a GPU in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenspeed import kernels, models, weights
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Scheduler, SchedulerOptions
from tokenspeed.exec import graphs
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch, BatchLimits
from tokenspeed.exec.executor import DeviceExecutor
from tokenspeed.exec.graphs import Recording
from tokenspeed.sampling import Sampler

CPU = torch.device("cpu")
ROWS, BLOCKS, BLOCK_TOKENS = 12, 64, 16
LIMITS = BatchLimits(slots=ROWS, rows=ROWS, tokens=64, context_tokens=128, block_tokens=BLOCK_TOKENS)
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
DEEPSEEK: dict[str, Any] = {
    **LLAMA,
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
}


class Replayed:
    """A recorder that runs the work again, and counts how often."""

    def __init__(self) -> None:
        self.recorded = 0
        self.runs: list[int] = []

    def record(self, work: Callable[[], Tensor]) -> Recording:
        self.recorded += 1
        logits = work().clone()

        def run() -> None:
            self.runs.append(len(logits))
            logits.copy_(work())

        return Recording(run, logits)


class Waiting:
    """A recorder that finds the work to wait for the device."""

    def record(self, work: Callable[[], Tensor]) -> Recording:
        raise graphs.WaitsError("some/kernel.py:7, in attend")


def model_of(config: dict[str, Any]) -> models.Model:
    model = models.build(config, dtype=torch.float32, block_tokens=BLOCK_TOKENS)
    weights.load_dummy(model, seed=1)
    return model


def executor_of(model: models.Model, *, mirrored: bool = True) -> DeviceExecutor:
    arena = Arena(model.kv_spec, blocks=BLOCKS, block_tokens=BLOCK_TOKENS, dtype=torch.float32, device=CPU)
    sampler = Sampler(slots=ROWS, vocab=model.facts.vocab, device=CPU)
    return DeviceExecutor(model, arena, Batch(LIMITS, CPU, mirrored=mirrored), sampler)


def answers(executor: DeviceExecutor, *, overlap: bool, params: list[dict[str, Any]]) -> list[list[int]]:
    """What each of the requests is told, which join one a step."""
    scheduler = Scheduler(
        SchedulerOptions(
            blocks_total=BLOCKS,
            block_tokens=BLOCK_TOKENS,
            slots_max=ROWS,
            tokens_per_step_max=LIMITS.tokens,
            rows_per_step_max=ROWS,
            prefill_tokens_max=24,
            waiting_max=64,
            context_tokens_max=LIMITS.context_tokens,
            prefix_cache=True,
            overlap=overlap,
            hash_key=bytes(16),
            seed=0,
        )
    )
    random = np.random.default_rng(5)
    prompts = [random.integers(3, 160, 1 + 7 * i % 40).astype(np.int32) for i in range(len(params))]
    said: list[list[int]] = [[] for _ in params]
    running = None
    for step in range(400):
        if step < len(params):
            scheduler.submit(
                step, prompts[step], tokens_max=12 + step, stop_ids=np.empty(0, np.int32), now_us=0
            )
        plan = scheduler.plan(step)
        launched = None
        if plan is not None:
            for slot, request_id in zip(
                plan.bound_slots.tolist(), plan.bound_request_ids.tolist(), strict=True
            ):
                sampling = SamplingParams(**{"temperature": 0.0, "seed": 3, **params[request_id]})
                executor.bind(slot, sampling, prompts[request_id], np.empty(0, np.int32))
            launched = executor.launch(plan)
        if not overlap:
            running, launched = launched, None
        if running is not None:
            result = executor.retire(running)
            outcome = scheduler.commit(result.step, result.tokens)
            for request_id, token in zip(outcome.request_ids.tolist(), outcome.tokens.tolist(), strict=True):
                said[request_id] += [token] if token >= 0 else []
        running = launched
        if running is None and scheduler.idle and step >= len(params):
            return said
    raise AssertionError("not done")


GREEDY = [{}] * 11
MIXED = [
    {},
    {"temperature": 0.8},
    {},
    {"temperature": 1.0, "top_k": 5},
    {"frequency": 0.5},
    {"logprobs": 2},
] * 2


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("params", [GREEDY, MIXED], ids=["greedy", "mixed"])
@pytest.mark.parametrize("config", [LLAMA, DEEPSEEK], ids=["gqa", "mla"])
def test_replayed_says_what_computed_says(config: dict[str, Any], params: list[Any], overlap: bool) -> None:
    model = model_of(config)
    plain = answers(executor_of(model, mirrored=False), overlap=False, params=params)
    assert [len(said) for said in plain] == [12 + i for i in range(len(params))]
    replayed = executor_of(model)
    recorder = Replayed()
    sizes = graphs.sizes_up_to(10)
    assert replayed.record(recorder, sizes).sizes == sizes
    assert recorder.recorded == len(sizes)
    assert answers(replayed, overlap=overlap, params=params) == plain
    assert {1, 10} <= set(recorder.runs) <= set(sizes)  # 9 rows were padded to 10, 11 rows computed


def test_a_step_that_also_prefills_is_computed() -> None:
    replayed = executor_of(model_of(LLAMA))
    recorder = Replayed()
    replayed.record(recorder, graphs.sizes_up_to(4))
    answers(replayed, overlap=False, params=[{}])
    assert recorder.runs == [1] * 11  # 12 tokens, the first of them by the prompt's step


def test_steps_that_share_many_blocks_run_recordings_of_their_own(
    monkeypatch: pytest.MonkeyPatch, plain_plan: Any
) -> None:
    model = model_of(DEEPSEEK)
    monkeypatch.setattr(type(model), "shares_blocks", True)
    monkeypatch.setattr("tokenspeed.exec.executor.SHARED_BLOCKS_LEAST", 3)
    executor = executor_of(model)
    recorder = Replayed()
    assert executor.record(recorder, (1, 2, 3, 4)).sizes == (1, 2, 3, 4)
    assert recorder.recorded == 4 + 2  # 2 and 4 rows once more
    given: list[bool] = []
    compute = executor._compute
    monkeypatch.setattr(
        executor, "_compute", lambda laid: given.append(laid.inputs.shared is not None) or compute(laid)
    )
    rows = [(slot, 3, [5], True) for slot in range(3)]
    for step, groups in enumerate(([], [([0, 2], 2)], [([0, 1, 2], 2)], [([0, 2], 3)])):
        executor.retire(executor.launch(plain_plan(rows, step=step, groups=groups)))
    assert given == [False, False, True, True]
    assert recorder.runs == [3, 3, 4, 4]


def test_padding_writes_nothing_and_is_nobodys_last_token() -> None:
    model = model_of(LLAMA)
    with kernels.overriding():
        executor = executor_of(model)
    executor.record(Replayed(), (4,))
    arena, batch = executor._arena, executor._batch
    assert not any(tensor.any() for layer in arena.layers for tensor in layer)
    assert not batch.last_tokens[: LIMITS.slots].any()


def test_what_waits_is_not_recorded() -> None:
    executor = executor_of(model_of(LLAMA))
    with pytest.raises(graphs.WaitsError, match=r"kernel\.py:7"):
        executor.record(Waiting(), (2,))
    assert len(answers(executor, overlap=False, params=[{}])[0]) == 12
