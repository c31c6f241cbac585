# SPDX-License-Identifier: MIT
"""The engine: two processes, one loop.

`wire` is what the processes say to each other; `front` is the API process's end (no torch); `launch` starts
and watches the core process; `core` is that process; `loop` carries requests through the control plane and an
executor (no torch).
"""
