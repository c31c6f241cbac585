# SPDX-License-Identifier: MIT
"""A core on the null device: the control plane whole, no weights, and it says so; what kernels are told."""

from __future__ import annotations

import pytest
import torch

from tokenspeed import kernels
from tokenspeed.base import config
from tokenspeed.engine.boot import _described, boot
from tokenspeed.exec.null import NullExecutor


def test_a_null_core_announces_itself_first() -> None:
    core = boot(config.build(device="null"))
    assert isinstance(core.executor, NullExecutor)
    assert core.ready.device == "null: computes nothing"
    what, value, why = core.ready.choices[0]
    assert (what, value) == ("device", "null")
    assert "COMPUTES NOTHING" in why


def test_a_null_core_takes_longer_contexts_than_the_model_but_its_vocabulary() -> None:
    core = boot(config.build(device="null", max_model_len=200_000, rows_max=16))
    assert core.ready.context_tokens_max == 200_000
    assert core.ready.vocab_size == 8192
    assert core.ready.blocks_total * core.ready.block_tokens == 16 * 200_000
    assert core.ready.overlap


@pytest.mark.parametrize(("where", "cores"), [("cpu", 16), ("cuda", 132)])
def test_gpu_is_described_with_its_own_cores(where: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "describe", lambda device: kernels.Device(type=device.type, cores=132))
    assert _described(torch.device(where), threads=16).cores == cores
