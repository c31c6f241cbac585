# SPDX-License-Identifier: MIT
"""Lines that clients put at the head of a system text for their own provider, though they read like headers.

`x-anthropic-billing-header: cc_version=...; cch=...` changes with the session or the request: left in, no two
prompts would share their beginning, and no model was taught it (rule R6).
"""

from __future__ import annotations

import re
from typing import Final

_LINES: Final = re.compile(r"(?:x-anthropic-[a-z0-9-]+:[^\n]*(?:\n+|\Z))+")


def without_pseudo_headers(text: str) -> str:
    """A system text without such lines at its head."""
    found = _LINES.match(text)
    return text if found is None else text[found.end() :]
