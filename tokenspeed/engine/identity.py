# SPDX-License-Identifier: MIT
"""Names of sessions, tenants and tools as the control plane knows them: 63-bit numbers that differ by their salt.

In: names as callers write them. Out: numbers, never 0, which stands for no name. A session's name means nothing
beyond its salt: two tenants may use one name. Not for secrets: whoever knows both can tell that they match.
"""

from __future__ import annotations

import hashlib


def session_id(salt: bytes, name: str | None) -> int:
    """The session that a caller of this salt names; 0 for none."""
    return 0 if name is None else _number(b"session", salt, name.encode("utf-8", "surrogatepass"))


def tenant_id(salt: bytes) -> int:
    """Who shares prefixes also shares a share of the device; 0 for those without a salt."""
    return 0 if not salt else _number(b"tenant", salt, b"")


def gap_key(tool: str | None) -> int:
    """The tool whose answer a session waits for; 0 for none."""
    return 0 if tool is None else _number(b"tool", b"", tool.encode("utf-8", "surrogatepass"))


def _number(kind: bytes, salt: bytes, name: bytes) -> int:
    key = hashlib.blake2b(salt, digest_size=16).digest()
    digest = hashlib.blake2b(name, digest_size=8, key=key, person=kind).digest()
    return int.from_bytes(digest, "little") >> 1 or 1
