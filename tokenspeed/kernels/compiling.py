# SPDX-License-Identifier: MIT
"""Compile the kernels that a piece of work launches side by side, before any of them is needed.

Triton compiles a kernel where it is first launched: work that needs twenty of them waits twenty times. Inside
`side_by_side`, a launch of a kernel that is not compiled yet hands it to a pool of threads and launches nothing;
what is compiled, and what needs no compiler, runs. The results of such work mean nothing, so it must be work
whose effects nobody will see; tensors it allocates are zero, so that an index which a kernel should have
written is a legal one. On leaving, all kernels handed over are compiled and are what Triton launches from then
on. Where there is no Triton, or one that cannot do this, nothing is different.
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


@dataclass(slots=True)
class Gathered:
    """What was handed over; Triton's view of it is `submit`."""

    pool: Executor
    jobs: dict[Hashable, tuple[Future[Any], Callable[[Any], None]]] = field(
        default_factory=dict[Hashable, tuple[Future[Any], Callable[[Any], None]]]
    )

    def submit(
        self, key: Hashable, compile_kernel: Callable[[], Any], keep: Callable[[Any], None]
    ) -> _Unlaunched:
        """Called by Triton where a kernel is missing; what it gets back is what it launches."""
        if key not in self.jobs:
            self.jobs[key] = self.pool.submit(compile_kernel), keep
        return _Unlaunched()

    def finish(self) -> None:
        """Wait for all, and let Triton keep them."""
        for job, keep in self.jobs.values():
            keep(job.result())


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
        finally:
            mode.reset(token)
        gathered.finish()


def _triton_mode() -> ContextVar[Any] | None:
    """Where Triton (3.5 and above) looks for somebody who compiles in its stead."""
    try:
        return importlib.import_module("triton.runtime._async_compile").active_mode
    except (ImportError, AttributeError):
        return None
