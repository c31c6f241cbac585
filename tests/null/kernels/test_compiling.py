# SPDX-License-Identifier: MIT
"""Kernels are compiled side by side for a device that is not here: Triton itself, and a driver that only talks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tokenspeed.kernels import compiling

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import _async_compile, driver  # noqa: E402


class Said:
    """A driver of a Hopper GPU that nobody can reach."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)


@triton.jit
def _scaled(x, y, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < count) * 2, mask=at < count)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Said())
    _scaled.device_caches.clear()
    yield
    _scaled.device_caches.clear()


def launch(block: int) -> torch.Tensor:
    x = torch.arange(40.0)
    y = torch.empty(40)
    _scaled[(1,)](x, y, 40, BLOCK=block)
    return y


@pytest.mark.usefixtures("hopper")
def test_missing_kernels_are_compiled_once_each_and_kept() -> None:
    with compiling.side_by_side(4) as gathered:
        for block in (64, 128, 64, 256, 64):
            assert not launch(block).any()  # not launched, and not what memory held before
        assert len(gathered.jobs) == 3
    kept = list(_scaled.device_caches[0][0].values())
    assert len(kept) == 3
    assert all("ld.global" in kernel.asm["ptx"] for kernel in kept)
    with compiling.side_by_side(4) as again, pytest.raises(Exception):  # noqa: B017 - a driver's word
        launch(64)  # is there, so it is launched, as far as this driver can
    assert not again.jobs


@pytest.mark.usefixtures("hopper")
def test_shares_are_whole_together_and_the_rest_is_left_to_its_launch() -> None:
    compiled: list[int] = []
    for index in range(2):
        _scaled.device_caches.clear()
        with compiling.side_by_side(2, compiling.Share(index, 2)) as gathered:
            for block in (64, 128, 256):
                launch(block)
        assert len(gathered.jobs) == 3
        compiled.append(sum(kernel is not None for kernel in _scaled.device_caches[0][0].values()))
    assert compiled == [2, 1]


@pytest.mark.usefixtures("hopper")
def test_a_kernel_that_does_not_compile_is_left_to_its_launch() -> None:
    with compiling.side_by_side(2) as gathered:
        launch(96)  # no power of two
        launch(64)
    assert len(gathered.jobs) == 2
    assert sum(kernel is None for kernel in _scaled.device_caches[0][0].values()) == 1
    with pytest.raises(Exception, match="arange"):
        launch(96)


@pytest.mark.usefixtures("hopper")
def test_after_an_error_in_the_work_nothing_is_kept() -> None:
    with pytest.raises(ZeroDivisionError), compiling.side_by_side(2):  # noqa: PT012
        launch(64)
        _ = 1 // 0
    assert _async_compile.active_mode.get() is None
    assert set(_scaled.device_caches[0][0].values()) == {None}


def test_allocations_are_zero_inside_alone() -> None:
    with compiling.side_by_side(1):
        made = [torch.empty(4096), torch.ones(8).new_empty(4096), torch.empty_like(torch.ones(4096))]
        assert not any(bool(tensor.any()) for tensor in made)
    assert _async_compile.active_mode.get() is None


def test_without_triton_work_runs_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_triton_mode", lambda: None)
    with compiling.side_by_side(1) as gathered:
        assert float(torch.ones(3).sum()) == 3
    assert not gathered.jobs
