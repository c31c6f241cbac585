# SPDX-License-Identifier: MIT
"""Logging: one format, stderr, never prompt text (rule R12)."""

from __future__ import annotations

import logging
import sys
from typing import Final

_FORMAT: Final = "%(asctime)s.%(msecs)03d %(levelname).1s %(name)s: %(message)s"
LEVELS: Final = ("debug", "info", "warning", "error")


def get_logger(floor: str) -> logging.Logger:
    """The logger of a floor, `tokenspeed.<floor>`."""
    return logging.getLogger(f"tokenspeed.{floor}")


def configure(level: str = "info") -> None:
    """Send the project's records at `level` and above to stderr; idempotent."""
    root = logging.getLogger("tokenspeed")
    root.setLevel(level.upper())
    if not root.handlers:
        root.addHandler(_handler())
        root.propagate = False


def adopt(library: str) -> None:
    """Print a library's records as the project's own; idempotent."""
    logger = logging.getLogger(library)
    if not logger.handlers:
        logger.addHandler(_handler())
        logger.propagate = False


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    return handler
