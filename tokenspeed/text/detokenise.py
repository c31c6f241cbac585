# SPDX-License-Identifier: MIT
"""Generated ids to text, piece by piece, O(1) a token.

In: ids as they are generated. Out: text that will not change any more; a character is held back until its
last byte is there. `flush` ends the sequence and yields what is still open (U+FFFD for a cut character). The
pieces joined are the text of the whole sequence, however the ids were grouped. It knows nothing of stop
strings or tool calls.

Byte-level vocabularies (all the families served today) use a table of bytes and an incremental UTF-8 decoder;
any other kind (byte fallback, stripped spaces) compares two decodings of a short window.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from tokenspeed.text.tokenizer import Tokenizer

_PENDING_MAX: Final = (
    8  # a character has at most 4 bytes; more open tokens than this are garbage, not a character
)
_CONTEXT: Final = (
    4  # ids of the prompt decoded again with the first new ones: a decoder may strip a leading space
)


class Detokeniser(Protocol):
    """One sequence being decoded."""

    def feed(self, ids: Iterable[int]) -> str: ...

    def flush(self) -> str: ...


def start(
    tokenizer: Tokenizer, *, hidden: frozenset[int] = frozenset(), prompt: Sequence[int] = ()
) -> Detokeniser:
    """Begin a sequence; `hidden` ids yield no text, `prompt` is what the sequence continues."""
    table = tokenizer.byte_table
    if table is not None:
        return _ByteDetokeniser(table, hidden)
    return _WindowDetokeniser(tokenizer, hidden, prompt)


class _ByteDetokeniser:
    __slots__ = ("_decoder", "_hidden", "_table")

    def __init__(self, table: list[bytes], hidden: frozenset[int]) -> None:
        self._table = table
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        table, hidden, end = self._table, self._hidden, len(self._table)
        return self._decoder.decode(b"".join(table[i] for i in ids if i not in hidden and 0 <= i < end))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokeniser:
    """Decodes `[context | pending]` and `[context]`; the difference is the text of the pending ids.

    The context is the last settled group of ids, so it never begins inside a character.
    """

    __slots__ = ("_hidden", "_settled", "_tokenizer", "_window")

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._window = [i for i in prompt[-_CONTEXT:] if i not in hidden]
        self._settled = len(self._window)

    def feed(self, ids: Iterable[int]) -> str:
        return "".join(self._step(i) for i in ids if i not in self._hidden)

    def flush(self) -> str:
        return self._take(self._tokenizer.decode(self._window))

    def _step(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd") and len(self._window) - self._settled < _PENDING_MAX:
            return ""
        return self._take(text)

    def _take(self, text: str) -> str:
        before = self._tokenizer.decode(self._window[: self._settled])
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        return text[len(before) :]
