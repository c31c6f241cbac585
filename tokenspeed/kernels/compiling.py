# SPDX-License-Identifier: MIT
"""Compile the kernels that a piece of work launches side by side, while something else is done.

Triton compiles a kernel where it is first launched: work that needs fifty of them waits fifty times. Inside
`gathering`, a launch of a kernel that is not compiled yet hands it to a pool of threads and launches nothing;
what is compiled, and what needs no compiler, runs. The results of such work mean nothing, so it must be work
whose effects nobody will see; tensors it allocates are zero, so that an index which a kernel should have
written is a legal one.

Afterwards a launch of a kernel that was handed over waits until it is compiled. One that does not compile fails
there, as it would have. Where there is no Triton, or one that cannot do this, nothing is different.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import Executor, Future
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
    open: bool = True
    """Launches do nothing yet."""
    jobs: dict[Hashable, _Job] = field(default_factory=dict[Hashable, "_Job"])

    def submit(
        self, key: Hashable, compile_kernel: Callable[[], Any], keep: Callable[[Any], None]
    ) -> _Handed:
        """Called by Triton where a kernel is missing; what it gets back is what it launches."""
        if key not in self.jobs:
            self.jobs[key] = _Job(self.pool.submit(compile_kernel))
        job, handed = self.jobs[key], _Handed(self, self.jobs[key].compiled)
        job.keeps.append(keep)
        keep(handed)  # found again in microseconds; going by here takes Triton a hundred times that
        return handed

    def wait(self) -> int:
        """Wait for all, and have Triton keep them in place of what it was given; how many there are."""
        for job in self.jobs.values():
            job.keep(None if job.compiled.exception() else job.compiled.result())
        return len(self.jobs)

    def forget(self) -> None:
        """Have Triton compile them when they are launched."""
        for job in self.jobs.values():
            job.compiled.cancel()
            job.keep(None)


@dataclass(frozen=True, slots=True)
class _Job:
    """A kernel being compiled, and where Triton keeps it: a place for each way in which it was called."""

    compiled: Future[Any]
    keeps: list[Callable[[Any], None]] = field(default_factory=list[Callable[[Any], None]])

    def keep(self, kernel: Any) -> None:
        for keep in self.keeps:
            keep(kernel)


class _Handed:
    """A kernel in the making, as Triton holds it. Launching it does nothing while its gathering is open."""

    function = packed_metadata = None

    def __init__(self, gathered: Gathered, compiled: Future[Any]) -> None:
        self._gathered, self._compiled = gathered, compiled

    @property
    def result(self) -> Callable[[], Any]:
        """The kernel, waited for. Triton asks whether there is this before it launches."""
        if self._gathered.open:
            raise AttributeError("result")
        return self._compiled.result

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
def gathering(pool: Executor) -> Generator[Gathered]:
    """Hand the kernels of the work inside to `pool`, which must live until `wait`."""
    gathered = Gathered(pool)
    mode = _triton_mode()
    if mode is None:
        yield gathered
        return
    token = mode.set(gathered)
    try:
        with _Zeroed():
            yield gathered
    except BaseException:
        gathered.forget()
        raise
    finally:
        gathered.open = False
        mode.reset(token)


def _triton_mode() -> ContextVar[Any] | None:
    """Where Triton (3.5 and above) looks for somebody who compiles in its stead."""
    try:
        return importlib.import_module("triton.runtime._async_compile").active_mode
    except (ImportError, AttributeError):
        return None
