# SPDX-License-Identifier: MIT
"""A server of our own for the length of a benchmark: the public command line, its address read from the banner.

In: options of `tokenspeed serve`. Out: a URL; the server ends with the context. It imports nothing of the engine.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from tokenspeed.base.errors import SetupError

_ADDRESS: Final = re.compile(r" at (http://\S+) \(ready after")
_LINES_KEPT: Final = 20
_STOP_S: Final = 60.0


@contextmanager
def serving(*options: str) -> Generator[str]:
    """Serve on a free port of loopback; `SetupError` with the server's last lines if it does not start."""
    command = [sys.executable, "-m", "tokenspeed.cli", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said: deque[str] = deque(maxlen=_LINES_KEPT)
    try:
        for line in process.stderr:
            said.append(line)
            if found := _ADDRESS.search(line):
                break
        else:
            raise SetupError(f"the server did not start:\n{''.join(said).rstrip()}")
        # Nobody reads the rest, but a full pipe would stop the server.
        threading.Thread(target=said.extend, args=(process.stderr,), daemon=True).start()
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
