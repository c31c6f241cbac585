# SPDX-License-Identifier: MIT
"""A slab: KV blocks in one file, each with what it takes to know it again after a crash. Format 1 (ADR 0007).

    0       header: magic, version, slots, block bytes, fingerprint of model and layout, hash key, CRC-32
    4096    one record of 64 bytes a slot: magic, version, hash, hash of the block before it, checksum, CRC-32
    ...     payloads, one a slot, from the next multiple of 4096 on

In: packed blocks of a fixed size. Out: the same bytes, or None. A record is blanked before its payload is
written and set after it, so that a process that dies in between leaves a slot without a record; where the order
on the medium was another (a power cut), the checksum over the payload says so when it is read. A file of another
fingerprint, version, size or a broken header is begun anew. Nothing is ever executed or unpickled. Sparse: a slot
takes room when it is first written. Errors of the disk are `OSError`; the caller gives the block up.

The file is locked while it is open, and has one user; it is readable by its owner alone, for it holds the key
that block hashes are made with. Knows no tensors and no tiers.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tokenspeed.base.errors import SetupError

MAGIC: Final = b"TSKVSLAB"
RECORD_MAGIC: Final = b"TSKB"
VERSION: Final = 1
PAGE: Final = 4096
_HEADER: Final = struct.Struct("<8sIIQ32s16s")
_RECORD: Final = struct.Struct("<4sI16s16sq")
RECORD_BYTES: Final = 64
_CRC: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Layout:
    """What a slab is for; files that differ in any of it are not read."""

    slots: int
    block_bytes: int
    fingerprint: bytes
    """32 bytes: model, weights, KV layout, dtype, block size."""

    @property
    def payload_at(self) -> int:
        return -(-(PAGE + self.slots * RECORD_BYTES) // PAGE) * PAGE

    @property
    def file_bytes(self) -> int:
        return self.payload_at + self.slots * self.block_bytes


class Record(NamedTuple):
    """What a slot says it holds."""

    hash: bytes
    parent: bytes
    checksum: int


class Slab:
    """One open slab. `key` is the hash key its blocks were found by."""

    def __init__(self, path: Path, layout: Layout, key: bytes) -> None:
        """Open `path`, or begin it anew with `key` where it is not a slab of this layout."""
        self.path = path
        self.layout = layout
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(f"the KV tier cannot use {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise SetupError(f"{path} is in use by another engine; give it a directory of its own") from error
        found = self._read_header()
        self.key = key if found is None else found
        if found is None:
            self._begin()

    def scan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(slots int32 [n], hashes uint64 [2 n], parents uint64 [2 n]) of all sound records; reads no payload."""
        table = os.pread(self._file, self.layout.slots * RECORD_BYTES, PAGE)
        slots: list[int] = []
        hashes, parents = bytearray(), bytearray()
        for slot in range(len(table) // RECORD_BYTES):
            record = _unpack(table[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES])
            if record is not None:
                slots.append(slot)
                hashes += record.hash
                parents += record.parent
        return (
            np.array(slots, np.int32),
            np.frombuffer(bytes(hashes), "<u8"),
            np.frombuffer(bytes(parents), "<u8"),
        )

    def write(self, slot: int, payload: np.ndarray, record: Record) -> None:
        """Fill a slot; payload: uint8 [block_bytes]. Raises `OSError`."""
        self.blank(slot)
        _write_whole(self._file, payload.data, self._payload_at(slot))
        _write_whole(self._file, memoryview(_pack(record)), PAGE + slot * RECORD_BYTES)

    def read(self, slot: int, payload: np.ndarray) -> Record | None:
        """Fill `payload` from a slot and say what it should be; None where the slot holds no block."""
        record = _unpack(os.pread(self._file, RECORD_BYTES, PAGE + slot * RECORD_BYTES))
        if record is None:
            return None
        view, done = payload.data, 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], self._payload_at(slot) + done)
            if count == 0:
                return None  # the file is shorter than its records say
            done += count
        return record

    def blank(self, slot: int) -> None:
        """Forget what a slot holds."""
        _write_whole(self._file, memoryview(bytes(RECORD_BYTES)), PAGE + slot * RECORD_BYTES)

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file; with `remove`, of its name too."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _payload_at(self, slot: int) -> int:
        return self.layout.payload_at + slot * self.layout.block_bytes

    def _header(self, key: bytes) -> bytes:
        layout = self.layout
        packed = _HEADER.pack(MAGIC, VERSION, layout.slots, layout.block_bytes, layout.fingerprint, key)
        return packed + _CRC.pack(zlib.crc32(packed))

    def _read_header(self) -> bytes | None:
        """The key of a slab of this layout."""
        header = os.pread(self._file, _HEADER.size + _CRC.size, 0)
        if len(header) < _HEADER.size:
            return None
        key: bytes = _HEADER.unpack_from(header)[5]
        return key if header == self._header(key) else None

    def _begin(self) -> None:
        os.ftruncate(self._file, 0)
        os.ftruncate(self._file, self.layout.file_bytes)
        _write_whole(self._file, memoryview(self._header(self.key)), 0)


def _pack(record: Record) -> bytes:
    packed = _RECORD.pack(RECORD_MAGIC, VERSION, record.hash, record.parent, record.checksum)
    return (packed + _CRC.pack(zlib.crc32(packed))).ljust(RECORD_BYTES, b"\0")


def _unpack(data: bytes) -> Record | None:
    if len(data) < _RECORD.size + _CRC.size:
        return None
    magic, version, hash_, parent, checksum = _RECORD.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _RECORD.size)
    sound = magic == RECORD_MAGIC and version == VERSION and crc == zlib.crc32(data[: _RECORD.size])
    return Record(hash_, parent, checksum) if sound else None


def _write_whole(file: int, view: memoryview, at: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], at + done)
