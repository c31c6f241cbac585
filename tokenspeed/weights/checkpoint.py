# SPDX-License-Identifier: MIT
"""A directory of safetensors files: shapes and places from their headers, bytes only where asked for.

In: a directory with `model.safetensors.index.json`, or with one or more `*.safetensors`. Out: names, shapes,
dtypes, and regions of tensors read into host memory that the caller gives. Whole rows are read from the file
straight into that memory; regions that cut rows are picked from the file's mapping. Reading is safe from many
threads at once and releases the GIL. It knows nothing of models and devices, and never unpickles: a
checkpoint in another format is a SetupError.

A file is 8 bytes of header length, a JSON header of {name: {dtype, shape, data_offsets}}, then the data
(github.com/huggingface/safetensors); a header that does not fit its file is refused before any data is read.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
import torch

from tokenspeed.base.errors import SetupError

INDEX_NAME: Final = "model.safetensors.index.json"
HEADER_BYTES_MAX: Final = 100 << 20
DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a stored tensor: one slice per dimension, all with start and stop."""

    name: str
    take: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(s.stop - s.start for s in self.take)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: `offset` counts from the start of its file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """Tensors by name across the files of one directory. Use it in a `with`: it holds the files open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._mapping = threading.Lock()
        try:
            self._places = self._locate()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the files back; nothing can be read any more."""
        for mapped in self._maps.values():
            mapped.close()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._maps.clear()
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def dtype(self, name: str) -> str:
        """The dtype in safetensors' spelling: BF16, F32, F8_E4M3, ..."""
        return self._places[name].dtype

    def torch_dtype(self, name: str) -> torch.dtype:
        """The dtype as torch has it; SetupError for one it has not."""
        spelled = self._places[name].dtype
        if spelled not in DTYPES:
            raise SetupError(
                f"{name} is stored as {spelled}, which is not read; read are {', '.join(DTYPES)}"
            )
        return DTYPES[spelled]

    def bytes(self, region: Region) -> int:
        """How many bytes a region measures."""
        return math.prod(region.shape) * self.torch_dtype(region.name).itemsize

    def read(self, region: Region) -> torch.Tensor:
        """A region as a tensor of its own."""
        out = torch.empty(region.shape, dtype=self.torch_dtype(region.name))
        self.read_into(region, out)
        return out

    def read_into(self, region: Region, out: torch.Tensor) -> None:
        """Read a region, and no bytes outside it, into contiguous host memory of its shape and dtype."""
        place = self._places[region.name]
        assert out.is_contiguous()
        assert (out.shape, out.dtype) == (region.shape, DTYPES[place.dtype])
        if not out.numel():
            return
        target = out.view(-1).view(torch.uint8).numpy()
        item_bytes = out.element_size()
        inner = place.shape[1:]
        if all(s == slice(0, size) for s, size in zip(region.take[1:], inner, strict=True)):
            first = region.take[0].start * math.prod(inner) * item_bytes if place.shape else 0
            self._read_span(place, first, target.data)
            return
        columns = region.take[-1]
        picked = slice(columns.start * item_bytes, columns.stop * item_bytes)
        source = self._map(place, item_bytes)[(*region.take[:-1], picked)]
        np.copyto(target.reshape(source.shape), source)

    def _read_span(self, place: _Place, first: int, target: memoryview) -> None:
        """Read the bytes from `first` of a tensor on until `target` is full."""
        offset = place.offset + first
        while target:  # one call reads at most 2 GiB
            count = os.preadv(self._files[place.path], [target], offset)
            if not count:
                raise SetupError(f"{place.path.name} in {self.directory} became shorter while it was read")
            target, offset = target[count:], offset + count

    def _map(self, place: _Place, item_bytes: int) -> Any:
        """A tensor's bytes as mapped: its shape, the last dimension in bytes."""
        with self._mapping:
            if place.path not in self._maps:
                self._maps[place.path] = mmap.mmap(self._files[place.path], 0, access=mmap.ACCESS_READ)
        count = math.prod(place.shape) * item_bytes
        flat = np.frombuffer(self._maps[place.path], np.uint8, count, place.offset)
        return flat.reshape(*place.shape[:-1], place.shape[-1] * item_bytes)

    def _locate(self) -> dict[str, _Place]:
        if not self.directory.is_dir():
            raise SetupError(f"{self.directory} is not a directory of weights")
        index = self.directory / INDEX_NAME
        if index.is_file():
            return self._locate_by_index(index)
        paths = sorted(self.directory.glob("*.safetensors"))
        if not paths:
            others = sorted(
                p.name for p in self.directory.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".gguf")
            )
            hint = (
                f"; it has {', '.join(others[:3])}, which are not read: convert to safetensors"
                if others
                else ""
            )
            raise SetupError(f"{self.directory} holds no safetensors{hint}")
        return {name: place for path in paths for name, place in self._open(path).items()}

    def _locate_by_index(self, index: Path) -> dict[str, _Place]:
        try:
            where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            paths = {str(file): self.directory / str(file) for file in where.values()}
            files = {name: paths[str(file)] for name, file in where.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SetupError(f"{index} has no readable weight_map: {error}") from error
        absent = sorted(path.name for path in paths.values() if not path.is_file())
        if absent:
            raise SetupError(
                f"{len(absent)} files named by {INDEX_NAME} are absent in {self.directory}: "
                f"{', '.join(absent[:8])}"
            )
        held = {path: self._open(path) for path in paths.values()}
        stray = sorted(name for name, path in files.items() if name not in held[path])
        if stray:
            raise SetupError(f"{INDEX_NAME} names tensors its files do not hold: {', '.join(stray[:8])}")
        return {name: held[path][name] for name, path in files.items()}

    def _open(self, path: Path) -> dict[str, _Place]:
        """Open a file, keep it open, and read its header."""
        try:
            self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return _read_header(path, self._files[path])
        except (OSError, ValueError, TypeError, KeyError, msgspec.MsgspecError) as error:
            raise SetupError(f"cannot read {path.name} in {self.directory}: {error}") from error


def _read_header(path: Path, descriptor: int) -> dict[str, _Place]:
    """Places of all tensors of a file; ValueError where the header does not describe the file."""
    file_bytes = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    start = 8 + length
    if file_bytes < 8 or start > file_bytes or length > HEADER_BYTES_MAX:
        raise ValueError(f"its {file_bytes} bytes hold no header of {length}")
    header = msgspec.json.decode(os.pread(descriptor, length, 8), type=dict[str, dict[str, Any]])
    header.pop("__metadata__", None)
    places: dict[str, _Place] = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        shape = tuple(int(size) for size in about["shape"])
        place = _Place(path, str(about["dtype"]), shape, start + begin)
        known = DTYPES.get(place.dtype)
        if begin < 0 or end < begin or start + end > file_bytes:
            raise ValueError(f"{name} lies at {begin}:{end} of {file_bytes - start} bytes")
        if known is not None and end - begin != math.prod(shape) * known.itemsize:
            raise ValueError(f"{name} is {place.dtype} {list(shape)} in {end - begin} bytes")
        places[name] = place
    return places
