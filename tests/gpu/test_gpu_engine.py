# SPDX-License-Identifier: MIT
"""The whole core on a GPU: what transformers says, in every mode, without ever waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.base.sampling import SamplingParams

MODES: dict[str, dict[str, Any]] = {
    "graphs": {},
    "eager": {"enforce_eager": True},
    "graphs-no-overlap": {"overlap": "off"},
    "eager-no-overlap": {"enforce_eager": True, "overlap": "off"},
    "no-prefix-cache": {"prefix_cache": False},
    "few-graphs": {"cuda_graph_rows_max": 3},
    "references": {"kernel": ("*=ref",)},
}
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 7, "logprobs": 3},
    {"temperature": 1.0, "min_p": 0.05, "presence": 0.4, "frequency": 0.2},
    {"repetition": 1.2, "logit_bias": {5: 3.0}},
    {"tokens_min": 8, "stop_ids": (9, 11, 14)},
]


@pytest.mark.parametrize("mode", MODES)
def test_greedy_tokens_equal_transformers(checkpoint: Any, world: Any, mode: str) -> None:
    core = world(checkpoint.directory, **MODES[mode])
    assert core.answers_to(checkpoint.prompts) == checkpoint.expected
    assert core.answers_to(checkpoint.prompts) == checkpoint.expected  # this time on cached prefixes


def test_decode_is_graphs_or_says_which_kernel_waits(checkpoint: Any, world: Any) -> None:
    value, reason = world(checkpoint.directory).choices["graphs"]
    if checkpoint.name in ("deepseek-v2", "deepseek-v3"):  # latents so short have no kernel but the reference
        assert value == "off"
        assert "ref/attention.py" in reason
    else:
        assert value.startswith("decode up to 16 rows"), reason


@pytest.mark.parametrize("family", ["llama", "moonlight"])
def test_requests_of_all_kinds_are_told_the_same_in_every_mode(
    checkpoint_of: Callable[[str], Any], world: Any, family: str
) -> None:
    checkpoint = checkpoint_of(family)

    def told(**options: Any) -> list[list[int]]:
        core = world(checkpoint.directory, **options)
        ids = [
            core.submit(prompt, **{"seed": i, **KINDS[i % len(KINDS)]})
            for i, prompt in enumerate(checkpoint.prompts)
        ]
        core.finish()
        return [core.answers[i].ids for i in ids]

    want = told()
    assert all(told(**options) == want for options in MODES.values() if "kernel" not in options)


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("mode", ["graphs", "eager"])
def test_launching_never_waits_for_the_device(
    checkpoint_of: Callable[[str], Any], world: Any, mode: str, kind: int
) -> None:
    checkpoint = checkpoint_of("llama")
    core = world(checkpoint.directory, **MODES[mode])
    for round_index in range(2):  # the first compiles, which may wait
        if round_index:
            launch = core.core.executor.launch
            core.core.executor.launch = without_waiting(launch)
            core.core.executor.bind = without_waiting(core.core.executor.bind)
        for prompt in checkpoint.prompts:
            core.submit(prompt, **KINDS[kind])
        core.finish()


def without_waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return call


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "moonlight"])
def test_a_thousand_replays_are_stable(checkpoint_of: Callable[[str], Any], world: Any, family: str) -> None:
    checkpoint = checkpoint_of(family)
    core = world(checkpoint.directory, rows_max=4)
    prompts = [prompt[:8] for prompt in checkpoint.prompts[:3]]
    first = core.answers_to(prompts, tokens_max=500)
    assert core.answers_to(prompts, tokens_max=500) == first
    assert all(len(said) == 500 for said in first)


@pytest.mark.parametrize("kv_cache_gib", [5, 26])  # 2^31 bytes, and 2^31 numbers, in each of three layers
@pytest.mark.parametrize("family", ["llama-128", "moonlight"])
def test_blocks_beyond_what_32_bits_address(
    checkpoint_of: Callable[[str], Any], world: Any, family: str, kv_cache_gib: int
) -> None:
    wanted = kv_cache_gib << 30
    if torch.cuda.mem_get_info()[0] < wanted + (2 << 30):
        pytest.skip(f"needs {kv_cache_gib + 2} GiB free")
    core = world(checkpoint_of(family).directory, kv_cache_bytes=wanted)
    last = core.core.resolved.blocks_total - 1
    prompt = checkpoint_of(family).prompts[1]
    assert said(core.core.executor, prompt, [last, last - 5, last - 2, last - 9]) == said(
        core.core.executor, prompt, [0, 3, 1, 7]
    )


def said(executor: Any, prompt: list[int], blocks: list[int]) -> list[int]:
    """Greedy tokens of a request whose KV lies in these blocks of 16."""
    executor.bind(
        0, SamplingParams(temperature=0.0, seed=0), np.array(prompt, np.int32), np.empty(0, np.int32)
    )
    tokens, told = prompt, []
    start = 0
    for step in range(64 - len(prompt)):
        changes = [(0, index, block) for index, block in enumerate(blocks)] if not step else []
        plan = Plan(step, 0, start, tokens, changes)
        told += executor.retire(executor.launch(plan)).tokens.tolist()
        start += len(tokens)
        tokens = told[-1:]
    return told


@dataclass
class Plan:
    """A plan of one row, written by hand."""

    step: int
    slot: int
    start: int
    ids: list[int]
    changes: list[tuple[int, int, int]]

    def __post_init__(self) -> None:
        self.rows = self.samples = 1
        self.decode_rows = int(len(self.ids) == 1)
        self.slots, self.starts = np.array([self.slot], np.int32), np.array([self.start], np.int32)
        self.lengths, self.tokens = np.array([len(self.ids)], np.int32), np.array(self.ids, np.int32)
        self.sampled = np.ones(1, np.uint8)
        self.table_slots, self.table_indexes, self.table_blocks = (
            np.array([change[at] for change in self.changes], np.int32) for at in range(3)
        )


def test_an_arena_that_does_not_fit_says_so(checkpoint_of: Callable[[str], Any], world: Any) -> None:
    with pytest.raises(SetupError, match="give at most"):
        world(checkpoint_of("llama").directory, kv_cache_bytes=1 << 40)


def test_the_share_of_memory_asked_for_is_kept(checkpoint_of: Callable[[str], Any], world: Any) -> None:
    before = torch.cuda.mem_get_info()[0]
    core = world(checkpoint_of("llama").directory, kv_cache_bytes=None, gpu_memory_share=0.6)
    free, total = torch.cuda.mem_get_info()
    core.answers_to(checkpoint_of("llama").prompts)
    assert before - free > 0.3 * total
    assert torch.cuda.mem_get_info()[0] >= 0.39 * total
