# SPDX-License-Identifier: MIT
"""Compile the kernels that a piece of work launches side by side, before any of them is needed.

Triton compiles a kernel where it is first launched: work that needs twenty of them waits twenty times. Inside
`side_by_side`, a launch of a kernel that is not compiled yet hands it to a pool of threads and launches nothing;
what is compiled, and what needs no compiler, runs. The results of such work mean nothing, so it must be work
whose effects nobody will see; tensors it allocates are zero, so that an index which a kernel should have
written is a legal one. On leaving, all kernels handed over are compiled and are what Triton launches from then
on. After an error, in the work or of the compiler, nothing is kept. Where there is no Triton, or one that cannot
do this, nothing is different.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

_ALLOCATE: Final = frozenset(
    (
        torch.empty,
        torch.empty_like,
        torch.empty_strided,
        torch.Tensor.new_empty,
        torch.Tensor.new_empty_strided,
    )
)


@dataclass(frozen=True, slots=True)
class _Job:
    """A kernel being compiled, and where Triton keeps it: a place for each way in which it was called."""

    compiled: Future[Any]
    keeps: list[Callable[[Any], None]] = field(default_factory=list[Callable[[Any], None]])

    def keep(self, kernel: Any) -> None:
        for keep in self.keeps:
            keep(kernel)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was handed over; Triton's view of it is `submit`."""

    pool: Executor
    jobs: dict[Hashable, _Job] = field(default_factory=dict[Hashable, _Job])

    def submit(
        self, key: Hashable, compile_kernel: Callable[[], Any], keep: Callable[[Any], None]
    ) -> _Unlaunched:
        """Called by Triton where a kernel is missing; what it gets back is what it launches, until `finish`."""
        if key not in self.jobs:
            self.jobs[key] = _Job(self.pool.submit(compile_kernel))
        self.jobs[key].keeps.append(keep)
        instead = _Unlaunched()
        keep(instead)  # found again in microseconds; going by here takes Triton a hundred times that
        return instead

    def finish(self) -> None:
        """Wait for all, and let Triton keep them."""
        kernels = [job.compiled.result() for job in self.jobs.values()]
        for job, kernel in zip(self.jobs.values(), kernels, strict=True):
            job.keep(kernel)

    def forget(self) -> None:
        """Have Triton compile them when they are launched."""
        for job in self.jobs.values():
            job.compiled.cancel()
            job.keep(None)


class _Unlaunched:
    """A kernel still being compiled: launching it does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *_: Any) -> None:
        """None, as of a kernel that says nothing of itself."""

    def run(self, *_: Any) -> None:
        """Launch nothing."""


class _Zeroed(TorchFunctionMode):
    """Allocations are zero."""

    def __torch_function__(
        self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        return result.zero_() if func in _ALLOCATE else result


@contextmanager
def side_by_side(threads: int) -> Generator[Gathered]:
    """Gather kernels from the work inside, and have them compiled by so many threads at the end of it."""
    with ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool:
        gathered = Gathered(pool)
        mode = _triton_mode()
        if mode is None:
            yield gathered
            return
        token = mode.set(gathered)
        try:
            with _Zeroed():
                yield gathered
            gathered.finish()
        except BaseException:
            gathered.forget()
            raise
        finally:
            mode.reset(token)


def _triton_mode() -> ContextVar[Any] | None:
    """Where Triton (3.5 and above) looks for somebody who compiles in its stead."""
    try:
        return importlib.import_module("triton.runtime._async_compile").active_mode
    except (ImportError, AttributeError):
        return None
