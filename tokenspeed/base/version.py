# SPDX-License-Identifier: MIT
"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The installed version; a tree that was never installed has none."""
    try:
        return version("tokenspeed")
    except PackageNotFoundError:
        return "0+unknown"
