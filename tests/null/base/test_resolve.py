# SPDX-License-Identifier: MIT
"""Choices and their reasons: what is asked for wins, the rest fits the machine, the impossible says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tokenspeed.base import config
from tokenspeed.base.errors import SetupError
from tokenspeed.base.resolve import (
    CPU_KV_BYTES_MAX,
    GIB,
    DeviceFacts,
    ModelFacts,
    resolve,
    resolve_graphs,
    resolve_held,
)

LAPTOP = DeviceFacts("cpu", "a CPU", cores=8, memory_total_bytes=16 * GIB, memory_available_bytes=12 * GIB)
SERVER = DeviceFacts("cpu", "a CPU", cores=64, memory_total_bytes=512 * GIB, memory_available_bytes=500 * GIB)
GPU = DeviceFacts("cuda", "a GPU", cores=16, memory_total_bytes=80 * GIB, memory_available_bytes=60 * GIB)
SMALL = ModelFacts("Small", "bfloat16", 32768, 1000, kv_bytes_per_token=1 << 15, weight_bytes=0)
LARGE = dataclasses.replace(SMALL, name="Large", context_tokens_max=131072, kv_bytes_per_token=1 << 17)


def test_a_laptop_gives_a_quarter_of_its_free_memory() -> None:
    resolved = resolve(config.build(), LAPTOP, SMALL)
    assert resolved.blocks_total == 3 * GIB // (64 << 15)
    assert resolved.context_tokens_max == 32768
    assert (resolved.overlap, resolved.threads, resolved.dtype) == (False, 8, "bfloat16")
    assert resolved.tokens_per_step_max == 512 + 64


def test_a_large_machine_is_capped() -> None:
    resolved = resolve(config.build(), SERVER, LARGE)
    one_context = 131072 << 17
    assert resolved.kv_tokens << 17 == max(CPU_KV_BYTES_MAX, one_context)


def test_one_full_context_may_take_up_to_half() -> None:
    model = dataclasses.replace(SMALL, kv_bytes_per_token=5 * GIB // 32768)
    resolved = resolve(config.build(), LAPTOP, model)
    assert resolved.context_tokens_max == 32768
    assert resolved.kv_tokens == 32768


def test_a_context_that_does_not_fit_is_clamped_with_a_reason() -> None:
    resolved = resolve(config.build(), LAPTOP, LARGE)
    assert resolved.context_tokens_max == 6 * GIB >> 17
    reasons = {choice.name: choice.reason for choice in resolved.choices}
    assert "131072" in reasons["max_model_len"]


def test_a_context_asked_for_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(SetupError, match=r"--max-model-len 49152"):
        resolve(config.build(max_model_len=131072), LAPTOP, LARGE)


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(SetupError, match="32768"):
        resolve(config.build(max_model_len=40000), LAPTOP, SMALL)


def test_weights_that_do_not_fit_are_refused_before_they_are_read() -> None:
    with pytest.raises(SetupError, match=r"needs 20\.00 GiB .* 12\.00 GiB free"):
        resolve(config.build(), LAPTOP, dataclasses.replace(SMALL, weight_bytes=20 * GIB))


def test_an_arena_asked_for_is_taken_or_refused() -> None:
    resolved = resolve(config.build(kv_cache_bytes=GIB), LAPTOP, SMALL)
    assert resolved.kv_tokens << 15 == GIB
    with pytest.raises(SetupError, match="kv_cache_bytes"):
        resolve(config.build(kv_cache_bytes=13 * GIB), LAPTOP, SMALL)


def test_memory_for_hardly_any_token_is_refused() -> None:
    least = 256 << 15
    with pytest.raises(SetupError, match=f"hold 64 tokens.*--kv-cache-bytes {least}"):
        resolve(config.build(kv_cache_bytes=64 << 15), LAPTOP, SMALL)


def test_a_gpu_overlaps_and_takes_most_of_its_memory() -> None:
    resolved = resolve(config.build(), GPU, LARGE)
    assert resolved.overlap
    assert resolved.kv_tokens << 17 <= 56 * GIB < (resolved.kv_tokens + 64) << 17
    assert resolved.prefill_tokens_max == 8192


def test_a_dtype_nobody_computes_in_becomes_bfloat16() -> None:
    resolved = resolve(config.build(), LAPTOP, dataclasses.replace(SMALL, dtype="float16"))
    assert resolved.dtype == "bfloat16"
    assert any("float16" in choice.reason for choice in resolved.choices)


def test_every_choice_has_a_reason() -> None:
    for device in (LAPTOP, GPU):
        assert all(choice.reason for choice in resolve(config.build(), device, SMALL).choices)


def test_the_null_device_is_never_chosen_and_overlaps_like_a_gpu() -> None:
    assert config.build().device.device == "auto"
    device = dataclasses.replace(GPU, type="null")
    resolved = resolve(config.build(), device, dataclasses.replace(SMALL, kv_bytes_per_token=1))
    assert resolved.overlap
    assert resolved.kv_tokens == 16 * 32768


def test_what_steps_take_on_a_gpu_is_left_free() -> None:
    small = dataclasses.replace(LARGE, step_bytes=10 * GIB)
    resolved = resolve(config.build(gpu_memory_share=0.5), GPU, small)
    assert resolved.kv_tokens << 17 <= 10 * GIB < (resolved.kv_tokens + 64) << 17  # 40 - 20 in use - 10
    with pytest.raises(SetupError, match=r"at most 53687091200"):
        resolve(config.build(kv_cache_bytes=51 * GIB), GPU, small)
    with pytest.raises(SetupError, match=r"hold 0 tokens"):
        resolve(config.build(gpu_memory_share=0.2), GPU, LARGE)


@pytest.mark.parametrize(
    ("options", "rows", "reason"),
    [
        ({}, 64, "all that may run at once"),
        ({"rows_max": 12}, 12, "all that may run at once"),
        ({"cuda_graph_rows_max": 16}, 16, "asked for"),
        ({"cuda_graph_rows_max": 256}, 64, "all that may run at once"),
        ({"enforce_eager": True}, 0, "asked for"),
    ],
)
def test_decode_steps_are_graphs_on_a_gpu(options: dict[str, Any], rows: int, reason: str) -> None:
    chosen, choice = resolve_graphs(config.build(**options), GPU)
    assert (chosen, choice.reason) == (rows, reason)
    assert choice in resolve(config.build(**options), GPU, SMALL).choices
    assert resolve_graphs(config.build(**options), LAPTOP)[0] == 0


@pytest.mark.parametrize(
    ("asked", "stored_fp8", "able_fp8", "weights"),
    [
        ("auto", False, True, None),
        ("auto", True, True, "fp8_block"),
        ("auto", True, False, None),
        ("none", True, True, None),
        ("fp8_block", False, True, "fp8_block"),
        ("int8", True, True, "int8"),
    ],
)
def test_weights_are_held_as_asked_or_as_the_checkpoint_has_them(
    asked: str, stored_fp8: bool, able_fp8: bool, weights: str | None
) -> None:
    options = config.build(quantization=asked, kv_dtype="fp8")
    found, kv_format, choices = resolve_held(options, stored_fp8=stored_fp8, able_fp8=able_fp8)
    assert (found, kv_format) == (weights, "fp8")
    said = {choice.name for choice in choices}
    assert said == ({"KV dtype"} if (asked, stored_fp8) == ("auto", False) else {"weights", "KV dtype"})
