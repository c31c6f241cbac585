# SPDX-License-Identifier: MIT
"""A directory of safetensors files, read lazily: shapes come from headers, data only for the region asked
for.

In: a directory with `model.safetensors.index.json`, or with one or more `*.safetensors`. Out: names, shapes,
dtypes, tensors. It knows nothing of models, and never unpickles: a checkpoint in another format is a
SetupError.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tokenspeed.base.errors import SetupError

INDEX_NAME = "model.safetensors.index.json"


class Checkpoint:
    """Tensors by name across the files of one directory; files are mapped when first touched."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[Path, Any] = {}
        self._where = self._locate()
        self.read_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self._where

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype in safetensors' spelling: BF16, F32, F8_E4M3, ..."""
        return str(self._slice(name).get_dtype())

    def read(self, name: str, take: tuple[slice, ...]) -> torch.Tensor:
        """Read the region `take` of a tensor, and no bytes outside it."""
        found = self._slice(name)
        tensor: torch.Tensor = found[take] if take else self._files[self._where[name]].get_tensor(name)
        self.read_bytes += tensor.nbytes
        return tensor

    def _slice(self, name: str) -> Any:
        return self._open(self._where[name]).get_slice(name)

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise SetupError(f"cannot read {path.name} in {self.directory}: {error}") from error
        return self._files[path]

    def _locate(self) -> dict[str, Path]:
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
        return {name: path for path in paths for name in self._open(path).keys()}  # noqa: SIM118

    def _locate_by_index(self, index: Path) -> dict[str, Path]:
        try:
            where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise SetupError(f"{index} has no readable weight_map: {error}") from error
        files = {name: self.directory / str(file) for name, file in where.items()}
        absent = sorted({path.name for path in files.values() if not path.is_file()})
        if absent:
            raise SetupError(
                f"{len(absent)} files named by {INDEX_NAME} are absent in {self.directory}: "
                f"{', '.join(absent[:8])}"
            )
        held = {path: frozenset(self._open(path).keys()) for path in set(files.values())}
        stray = sorted(name for name, path in files.items() if name not in held[path])
        if stray:
            raise SetupError(f"{INDEX_NAME} names tensors its files do not hold: {', '.join(stray[:8])}")
        return files
