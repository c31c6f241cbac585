# SPDX-License-Identifier: MIT
"""TokenSpeed: an LLM inference engine for coding agents.

The library's surface is `LLM`, `SamplingParams` and the errors. They are looked up when first used, here
alone in the project: every process imports this package, and the core, the command line and the simulator
must not pay for (nor the floors below depend on) the engine's front that `LLM` stands on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenspeed.base.sampling import SamplingParams
    from tokenspeed.llm import LLM, Completion

__all__ = ["LLM", "Completion", "SamplingParams", "__version__"]
__version__ = "0.1.0"

_HOMES = {
    "LLM": "tokenspeed.llm",
    "Completion": "tokenspeed.llm",
    "SamplingParams": "tokenspeed.base.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenspeed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
