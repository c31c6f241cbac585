# SPDX-License-Identifier: MIT
"""Ids of calls: read from what a model writes where a family writes them, and made where it does not.

Templates write the ids of the history back, so an id that a model wrote goes out to the client as it is.
"""

from __future__ import annotations

import secrets
import string
from typing import Final

from tokenspeed.text.tools.spec import CallFormat

_NAMESPACE: Final = "functions."
_LETTERS: Final = string.ascii_letters + string.digits
SHORT_LENGTH: Final = 9  # letters and digits; templates of this kind refuse any other


def named(head: str) -> tuple[str, str]:
    """Name and id of a head `functions.NAME:COUNT`; what lacks a part is read without it."""
    name, colon, count = head.rpartition(":")
    return (name if colon and count.isdigit() else head).removeprefix(_NAMESPACE), head


def head_of(name: str, call_id: str | None, index: int) -> str:
    """The head of a call whose id is in it."""
    return call_id or f"{_NAMESPACE}{name}:{index}"


def fresh(call_format: CallFormat | None) -> str:
    """An id for a call that came without one, such that the family's templates take it back."""
    if call_format is not None and call_format.ids in ("call_id", "member"):
        return "".join(secrets.choice(_LETTERS) for _ in range(SHORT_LENGTH))
    return f"call_{secrets.token_hex(12)}"
