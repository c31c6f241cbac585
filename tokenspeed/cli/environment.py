# SPDX-License-Identifier: MIT
"""`tokenspeed env`: what a bug report needs: versions, the machine, the variables the engine reads."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import torch

from tokenspeed import __version__
from tokenspeed.base import env
from tokenspeed.base.flags import Parser
from tokenspeed.kernels.device import describe

_DISTRIBUTIONS: Final = ("torch", "numpy", "tokenizers", "starlette", "uvicorn", "msgspec", "pyzmq", "triton")
_SECRET: Final = frozenset({"TOKENSPEED_API_KEY"})


def main(argv: list[str]) -> None:
    Parser("env", "Print versions, the device and the TOKENSPEED_* variables.").parse_args(argv)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    rows = [
        ("tokenspeed", __version__),
        ("python", platform.python_version()),
        ("system", platform.platform()),
        *((f"device {kind}", str(describe(kind))) for kind in devices),
        *((name, _version(name)) for name in _DISTRIBUTIONS),
        *((name, _value(name)) for name in env.KNOWN),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _value(name: str) -> str:
    value = env.get(name)
    if value is None:
        return f"unset ({env.KNOWN[name]})"
    return "set" if name in _SECRET else value
