# SPDX-License-Identifier: MIT
"""Answers that are kept so that a later request may go on from them: bounded, in memory, oldest first to go."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from tokenspeed.base.errors import RequestError

BYTES_MAX: Final = 256 << 20
_RECORD_BYTES: Final = 1024  # what a record weighs beside its bytes, about


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer: its document, and the items that it was an answer to and consists of."""

    document: bytes
    items: bytes
    """Elements of a JSON array, without its brackets."""
    salt: bytes

    @property
    def bytes_held(self) -> int:
        return len(self.document) + len(self.items) + _RECORD_BYTES


class Store:
    """The answers of one server, by id."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, answer_id: str, kept: Kept) -> None:
        """Keep an answer, instead of whatever was not used for longest."""
        if kept.bytes_held > self._bytes_max:
            return
        self._kept[answer_id] = kept
        self.bytes_held += kept.bytes_held
        while self.bytes_held > self._bytes_max:
            self.bytes_held -= self._kept.popitem(last=False)[1].bytes_held

    def get(self, answer_id: str) -> Kept | None:
        """An answer, if it is still kept."""
        kept = self._kept.get(answer_id)
        if kept is not None:
            self._kept.move_to_end(answer_id)
        return kept

    def previous(self, answer_id: str, salt: bytes) -> Kept:
        """The answer a request goes on from; `RequestError` if it is not kept, or another tenant's."""
        kept = self.get(answer_id)
        if kept is None or kept.salt != salt:
            raise RequestError(
                f"Previous response with id {answer_id[:100]!r} not found; it was not stored, or is no longer kept. "
                "Send its items as input instead.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return kept

    def drop(self, answer_id: str) -> bool:
        """Forget an answer; False if it was not kept."""
        kept = self._kept.pop(answer_id, None)
        if kept is not None:
            self.bytes_held -= kept.bytes_held
        return kept is not None
