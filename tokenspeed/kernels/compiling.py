# SPDX-License-Identifier: MIT
"""Compile the kernels that a piece of work launches side by side, before any of them is needed.

Triton compiles a kernel where it is first launched: work that needs fifty of them waits fifty times. Inside
`side_by_side`, a launch of a kernel that is not compiled yet notes it and launches nothing; what is compiled, and
what needs no compiler, runs. The results of such work mean nothing, so it must be work whose effects nobody
will see; tensors it allocates are zero, so that an index which a kernel should have written is a legal one.

On leaving, what was noted is compiled by several threads at once, and then is what Triton launches. Nothing else
should go on meanwhile: compiling holds the interpreter for milliseconds at a time, and every other thread waits.
A kernel that does not compile is left to its launch, which fails as it would have. Where there is no Triton, or
one that cannot do this, nothing is different.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
class Share:
    """Every `count`-th kernel from the `index`-th on: what one of several processes compiles."""

    index: int = 0
    count: int = 1


ALL: Final = Share()


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was noted; Triton's view of it is `submit`."""

    jobs: dict[Hashable, _Job] = field(default_factory=dict[Hashable, "_Job"])

    def submit(
        self, key: Hashable, compile_kernel: Callable[[], Any], keep: Callable[[Any], None]
    ) -> _Unlaunched:
        """Called by Triton where a kernel is missing; what it gets back is what it launches."""
        if key not in self.jobs:
            self.jobs[key] = _Job(compile_kernel)
        self.jobs[key].keeps.append(keep)
        instead = _Unlaunched()
        keep(instead)  # found again in microseconds; going by here takes Triton a hundred times that
        return instead

    def compile(self, threads: int, share: Share) -> None:
        """Compile this share and have Triton keep it; the rest is left to its launches."""
        jobs = list(self.jobs.values())
        mine = jobs[share.index :: share.count]
        with ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool:
            running = [(job, pool.submit(job.build)) for job in mine]
            for job, compiled in running:
                job.keep(None if compiled.exception() else compiled.result())
        for job in jobs:
            if job not in mine:
                job.keep(None)

    def forget(self) -> None:
        """Have Triton compile them when they are launched."""
        for job in self.jobs.values():
            job.keep(None)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A kernel to compile, and where Triton keeps it: a place for each way in which it was called."""

    compile_kernel: Callable[[], Any]
    keeps: list[Callable[[Any], None]] = field(default_factory=list[Callable[[Any], None]])

    def build(self) -> Any:
        """The kernel, and the function in C that launches it, which takes a compiler as long again."""
        kernel = self.compile_kernel()
        with suppress(Exception):  # whatever it is, a launch meets it too
            _ = kernel.run
        return kernel

    def keep(self, kernel: Any) -> None:
        for keep in self.keeps:
            keep(kernel)


class _Unlaunched:
    """A kernel that is not compiled yet: launching it does nothing."""

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
def side_by_side(threads: int, share: Share = ALL) -> Generator[Gathered]:
    """Note the kernels of the work inside; at the end of it, compile a share of them with so many threads."""
    gathered = Gathered()
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
        mode.reset(token)
    gathered.compile(threads, share)


def _triton_mode() -> ContextVar[Any] | None:
    """Where Triton (3.5 and above) looks for somebody who compiles in its stead."""
    try:
        return importlib.import_module("triton.runtime._async_compile").active_mode
    except (ImportError, AttributeError):
        return None
