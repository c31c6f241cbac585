# SPDX-License-Identifier: MIT
"""Regions come back as safetensors reads them; headers that do not fit their file are refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenspeed.base.errors import SetupError
from tokenspeed.weights.checkpoint import DTYPES, Checkpoint, Region


def put(directory: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file of an arbitrary header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = directory / "model.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return directory


@pytest.mark.parametrize(
    "take",
    [
        (slice(0, 7), slice(0, 5), slice(0, 6)),
        (slice(2, 5), slice(0, 5), slice(0, 6)),
        (slice(2, 5), slice(1, 4), slice(0, 6)),
        (slice(0, 7), slice(2, 3), slice(1, 5)),
        (slice(3, 3), slice(0, 5), slice(0, 6)),
    ],
    ids=["whole", "rows", "second", "all", "none"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int32])
def test_regions_equal_slices(take: tuple[slice, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = (torch.randn(7, 5, 6) * 50).to(dtype)
    save_file({"before": torch.ones(3), "t": tensor}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names == {"before", "t"}
        assert (checkpoint.shape("t"), checkpoint.torch_dtype("t")) == ((7, 5, 6), dtype)
        region = Region("t", take)
        got = checkpoint.read(region)
        assert checkpoint.bytes(region) == got.nbytes
    assert torch.equal(got.view(torch.uint8), tensor[take].contiguous().view(torch.uint8))


def test_data_may_lie_at_any_offset(tmp_path: Path) -> None:
    values = torch.randn(6, 4)
    header = b'{"t":{"dtype":"F32","shape":[6,4],"data_offsets":[0,96]}}'
    assert len(header) % 4
    put(tmp_path, header, values.numpy().tobytes())
    with Checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read(Region("t", (slice(0, 6), slice(0, 4)))), values)
        assert torch.equal(checkpoint.read(Region("t", (slice(1, 6), slice(1, 3)))), values[1:, 1:3])


def test_scalars_are_read(tmp_path: Path) -> None:
    save_file({"s": torch.tensor(2.5)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert float(checkpoint.read(Region("s", ()))) == 2.5


def test_reading_from_many_threads_is_safe(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(40, 30) for i in range(20)}
    save_file(tensors, tmp_path / "model.safetensors")
    takes = [(slice(0, 40), slice(0, 30)), (slice(7, 33), slice(0, 30)), (slice(0, 40), slice(3, 9))]
    regions = [Region(name, take) for name in tensors for take in takes] * 5
    with Checkpoint(tmp_path) as checkpoint, ThreadPoolExecutor(8) as pool:
        for region, got in zip(regions, pool.map(checkpoint.read, regions), strict=True):
            assert torch.equal(got, tensors[region.name][region.take])


def test_every_dtype_of_the_library_is_known(tmp_path: Path) -> None:
    tensors = {kind: torch.zeros(2, dtype=dtype) for kind, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert set(load_file(tmp_path / "model.safetensors")) == set(DTYPES)
    with Checkpoint(tmp_path) as checkpoint:
        assert {kind: checkpoint.dtype(kind) for kind in DTYPES} == {kind: kind for kind in DTYPES}


def test_strange_dtypes_are_refused_when_wanted_and_not_before(tmp_path: Path) -> None:
    put(tmp_path, {"t": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"\0\0")
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(SetupError, match="t is stored as F4"):
        checkpoint.read(Region("t", (slice(0, 4),)))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"not json", "JSON"),
        (b"[]", "object"),
        ({"t": {"dtype": "F32", "shape": [4]}}, "data_offsets"),
        ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 17]}}, "t lies at 0:17 of 16"),
        ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]}}, "t lies at -8:8"),
        ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [8, 4]}}, "t lies at 8:4"),
        ({"t": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}, r"t is F32 \[3\] in 16 bytes"),
        ({"t": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 16]}}, "invalid literal"),
    ],
)
def test_headers_that_do_not_fit_their_file_are_refused(header: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=rf"cannot read model\.safetensors .*{said}"):
        Checkpoint(put(tmp_path, header, bytes(16)))


def test_headers_longer_than_the_file_are_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="hold no header"):
        Checkpoint(put(tmp_path, b"{}", length=1 << 60))


def test_files_cut_while_open_are_an_error_not_garbage(tmp_path: Path) -> None:
    save_file({"t": torch.randn(1000)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.truncate(200)
        with pytest.raises(SetupError, match="became shorter"):
            checkpoint.read(Region("t", (slice(0, 1000),)))
