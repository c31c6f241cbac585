# SPDX-License-Identifier: MIT
"""Processes that compile a GPU's kernels while the core reads weights.

Triton's front end is Python: threads that compile take turns, and a thread that reads weights waits for them. So the
core forks a few processes before it has threads or a CUDA context. Each goes through the steps of the model as
`exec.rehearsal` does, compiles its share into Triton's cache, and ends. Whatever becomes of them, the core compiles
what it does not find there. On a machine of few cores, or without a GPU, there are none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenspeed.base.config import EngineConfig
from tokenspeed.base.errors import TokenSpeedError
from tokenspeed.base.log import get_logger
from tokenspeed.engine import boot
from tokenspeed.kernels.compiling import Share

_log = get_logger("engine")
PROCESSES_MAX: Final = 4
CORES_PER_PROCESS: Final = 4
PROCESS_BYTES: Final = 6 << 30
"""Of the GPU's memory, which each may take besides what the core will: a context, and a twin of few layers."""
WAIT_S: Final = 120.0
_DRIVER: Final = Path("/dev/nvidiactl")


class Compilers:
    """The processes, from fork to end."""

    def __init__(self, config: EngineConfig, *, close: Sequence[int]) -> None:
        """Fork them. Call it while the process has one thread and has not touched a GPU.

        `close`: descriptors that a process must not keep open after the core is gone.
        """
        count = _processes(config)
        self._running = [_fork(config, Share(index, count), close) for index in range(count)]

    def wait(self) -> None:
        """Until all have ended, or for so long that waiting is no gain."""
        until_s = time.monotonic() + WAIT_S
        while self._running and time.monotonic() < until_s:
            self._running = [pid for pid in self._running if os.waitpid(pid, os.WNOHANG)[0] == 0]
            time.sleep(0.01)
        if self._running:
            _log.warning("%d processes still compile kernels after %.0f s", len(self._running), WAIT_S)


def _processes(config: EngineConfig) -> int:
    if config.device.device not in ("auto", "cuda") or not _DRIVER.exists():
        return 0
    return min(PROCESSES_MAX, len(os.sched_getaffinity(0)) // CORES_PER_PROCESS)


def _fork(config: EngineConfig, share: Share, close: Sequence[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        for descriptor in close:
            os.close(descriptor)
        _compile(config, share)
    except TokenSpeedError:
        pass  # the core meets it too, and says so
    finally:
        os._exit(0)  # nothing of the core's is to be cleaned up here


def _compile(config: EngineConfig, share: Share) -> None:
    blueprint = boot.draw(config)
    spare_bytes = blueprint.found.memory_available_bytes - blueprint.about.weight_bytes
    if blueprint.device.type == "cuda" and spare_bytes > share.count * PROCESS_BYTES:
        boot.compile_kernels(blueprint, share)
