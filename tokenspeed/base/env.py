# SPDX-License-Identifier: MIT
"""The one reader of environment variables, and their complete list.

An unknown `TOKENSPEED_*` name is an error (`check_known`): a misspelt variable must not be silently inert.
Configuration proper lives in `config`; variables exist only for what is set before a command line is parsed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Final

from tokenspeed.base.errors import SetupError

KNOWN: Final[dict[str, str]] = {
    "TOKENSPEED_LOG_LEVEL": "debug | info | warning | error; default info",
    "TOKENSPEED_API_KEY": "the key clients must send; the same as --api-key, without showing it in the process list",
    "TOKENSPEED_CACHE_DIR": "where generated files may be kept; default ~/.cache/tokenspeed",
}

_PREFIX: Final = "TOKENSPEED_"
_SUFFIXES: Final = tuple(name.removeprefix(_PREFIX) for name in KNOWN)


def get(name: str, default: str | None = None, *, environ: Mapping[str, str] | None = None) -> str | None:
    """Read one listed variable; `KeyError` for a name that is not in `KNOWN`."""
    KNOWN[name]
    return (os.environ if environ is None else environ).get(name, default)


def check_known(environ: Mapping[str, str] | None = None) -> None:
    """Raise `SetupError` if a `TOKENSPEED_*` variable is set that nobody reads."""
    for name in os.environ if environ is None else environ:
        if name.startswith(_PREFIX) and name not in KNOWN:
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), _SUFFIXES, n=1)
            hint = f"did you mean {_PREFIX}{near[0]}?" if near else f"known: {', '.join(sorted(KNOWN))}"
            raise SetupError(f"unknown environment variable {name}; {hint}")
