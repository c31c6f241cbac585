# SPDX-License-Identifier: MIT
"""What a rehearsal gathers is all that decode steps and prompts compile: a Hopper device that only says it is one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tokenspeed import kernels, models, weights
from tokenspeed.exec import graphs, probe, rehearsal
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch, BatchLimits
from tokenspeed.exec.executor import DeviceExecutor
from tokenspeed.kernels import Device, compiling
from tokenspeed.sampling import Sampler

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

MOONLIGHT: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_attention_heads": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_group": 1,
    "topk_group": 1,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
LIMITS = BatchLimits(slots=6, rows=6, tokens=200, context_tokens=1024, block_tokens=64)


class OnHost(Device):
    """Chosen for as a GPU; its tensors lie here."""

    __slots__ = ()

    @property
    def torch(self) -> torch.device:
        return torch.device("cpu")


HOPPER = OnHost("cuda", "NVIDIA H200", sm=(9, 0), cores=132, memory_bytes=141 << 30)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    says = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    properties = SimpleNamespace(
        shared_memory_per_block_optin=232448, multi_processor_count=132, major=9, minor=0
    )
    monkeypatch.setattr(driver, "_active", says)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(kernels, "describe", lambda device="cpu": HOPPER)


def test_steps_after_a_rehearsal_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(layers: int) -> models.Model:
        return models.build({**MOONLIGHT, "num_hidden_layers": layers}, device=HOPPER)

    submit = compiling.Gathered.submit
    # What is kept goes on doing nothing: there is no GPU to launch it on.
    still = SimpleNamespace(
        function=None, packed_metadata=None, launch_metadata=lambda *_: None, run=lambda *_: None
    )

    def uncompiled(self: Any, key: Any, compile_kernel: Any, keep: Any) -> Any:
        del compile_kernel
        return submit(self, key, lambda: still, keep)

    monkeypatch.setattr(compiling.Gathered, "submit", uncompiled)
    model = shorter(3)
    assert rehearsal.compile_kernels(model, shorter, LIMITS, rows_max=6, threads=2) > 10
    with torch.inference_mode(), compiling.side_by_side(1) as again:
        weights.load_dummy(model)
        here = torch.device("cpu")
        arena = Arena(model.kv_spec, blocks=2, block_tokens=64, dtype=model.dtype, device=here)
        model.forward(probe.largest_step(LIMITS, here), arena)
        sampler = Sampler(slots=6, vocab=512, device=here)
        executor = DeviceExecutor(model, arena, Batch(LIMITS, here), sampler)
        executor.record(rehearsal.Rehearsal(), graphs.sizes_up_to(6))
    assert not again.jobs


def test_the_twin_is_the_fewest_layers_with_all_shapes() -> None:
    built: list[int] = []

    def shorter(layers: int) -> models.Model:
        built.append(layers)
        return models.build(
            {**MOONLIGHT, "num_hidden_layers": layers, "first_k_dense_replace": 3}, device=HOPPER
        )

    model = shorter(12)
    assert rehearsal.twin_of(model, shorter).facts.layers == 4
    assert built == [12, 1, 2, 3, 4]
