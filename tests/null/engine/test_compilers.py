# SPDX-License-Identifier: MIT
"""Processes that compile: they are forked only where there is a GPU, do their share, hold nothing open, and end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenspeed.base.config import DeviceConfig, EngineConfig, ModelConfig
from tokenspeed.base.errors import SetupError
from tokenspeed.engine import compilers
from tokenspeed.kernels.compiling import Share

CONFIG = EngineConfig(model=ModelConfig(model="nowhere"), device=DeviceConfig(device="cuda"))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_processes", lambda config: 2)


def test_without_a_gpu_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_DRIVER", Path("/nowhere"))
    monkeypatch.setattr(compilers, "_fork", lambda *_: pytest.fail("forked"))
    compilers.Compilers(CONFIG, close=()).wait()


def test_a_cpu_asked_for_by_name_forks_nothing_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_DRIVER", Path("/"))
    monkeypatch.setattr(compilers, "_fork", lambda *_: pytest.fail("forked"))
    compilers.Compilers(EngineConfig(device=DeviceConfig(device="cpu")), close=()).wait()


@pytest.mark.usefixtures("two")
def test_every_share_is_compiled_and_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()

    def compile_share(config: EngineConfig, share: Share) -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(write_end)
        (tmp_path / f"{share.index} of {share.count}").write_text(config.model.model)

    monkeypatch.setattr(compilers, "_compile", compile_share)
    compilers.Compilers(CONFIG, close=(write_end,)).wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 of 2", "1 of 2"]
    os.close(read_end)
    os.close(write_end)


@pytest.mark.usefixtures("two")
def test_a_setup_that_cannot_be_is_left_to_the_core(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(config: EngineConfig, share: Share) -> None:
        raise SetupError("no such model")

    monkeypatch.setattr(compilers, "_compile", refuse)
    compilers.Compilers(CONFIG, close=()).wait()
    assert capfd.readouterr().err == ""
