# SPDX-License-Identifier: MIT
"""Texts that a client carries for us without reading or changing them: encrypted reasoning, signatures.

In: a text. Out: an opaque token of letters, digits, `-` and `_` that only a holder of the same key opens again.
Encrypt-then-MAC: zlib, a keystream of SHAKE-256 over key and nonce, BLAKE2b over nonce and ciphertext; the nonce
is drawn for every text. The key follows from the server's API key, so that a restarted server, or another one of
the same fleet, opens what this one sealed; without an API key it lasts as long as the process.

Not here: protection from whoever holds the key, or of the text's length.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import zlib
from typing import Final

_NONCE_BYTES: Final = 16
_TAG_BYTES: Final = 16
_PREFIX: Final = "ts1-"
_TEXT_BYTES_MAX: Final = (
    4 << 20
)  # opened; a forged one cannot get so far, a stolen key should not help either


class Seal:
    """Seals and opens with one key."""

    def __init__(self, secret: str | None) -> None:
        root = secrets.token_bytes(32) if secret is None else secret.encode("utf-8", "surrogateescape")
        self._stream_key, self._tag_key = (
            hashlib.blake2b(root, digest_size=32, person=purpose).digest()
            for purpose in (b"ts seal stream", b"ts seal tag")
        )

    def close(self, text: str) -> str:
        """Seal a text."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        hidden = self._mix(nonce, zlib.compress(text.encode("utf-8", "surrogatepass"), 1))
        return _PREFIX + base64.urlsafe_b64encode(nonce + self._tag(nonce, hidden) + hidden).decode()

    def open(self, sealed: str) -> str | None:
        """The text, or None for what was not sealed with this key."""
        if not sealed.startswith(_PREFIX):
            return None
        try:
            data = base64.b64decode(sealed[len(_PREFIX) :], altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        nonce, tag = data[:_NONCE_BYTES], data[_NONCE_BYTES : _NONCE_BYTES + _TAG_BYTES]
        hidden = data[_NONCE_BYTES + _TAG_BYTES :]
        if not hmac.compare_digest(tag, self._tag(nonce, hidden)):
            return None
        plain = zlib.decompressobj().decompress(self._mix(nonce, hidden), _TEXT_BYTES_MAX)
        return plain.decode("utf-8", "surrogatepass")

    def _tag(self, nonce: bytes, hidden: bytes) -> bytes:
        return hashlib.blake2b(nonce + hidden, digest_size=_TAG_BYTES, key=self._tag_key).digest()

    def _mix(self, nonce: bytes, data: bytes) -> bytes:
        """XOR with the keystream: its own inverse."""
        stream = hashlib.shake_256(self._stream_key + nonce).digest(len(data))
        mixed = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
        return mixed.to_bytes(len(data), "big")
