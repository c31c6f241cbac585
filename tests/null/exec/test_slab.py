# SPDX-License-Identifier: MIT
"""A slab gives back what was put in, after any crash; what is torn, cut, foreign or in use is not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.exec import slab
from tokenspeed.exec.slab import PAGE, RECORD_BYTES, Layout, Record, Slab

LAYOUT = Layout(slots=8, block_bytes=5000, fingerprint=bytes(range(32)))
KEY = b"k" * 16


def payload(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)


def record(number: int) -> Record:
    return Record(number.to_bytes(16, "little"), (number - 1).to_bytes(16, "little"), -number)


def filled(path: Path) -> Slab:
    made = Slab(path, LAYOUT, KEY)
    for slot in (1, 5, 7):
        made.write(slot, payload(slot), record(slot))
    return made


def read(at: Slab, slot: int) -> tuple[Record | None, np.ndarray]:
    out = np.zeros(LAYOUT.block_bytes, np.uint8)
    return at.read(slot, out), out


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    filled(tmp_path / "a").close()
    again = Slab(tmp_path / "a", LAYOUT, b"other key 16 byt")
    assert again.key == KEY
    slots, hashes, parents = again.scan()
    assert slots.tolist() == [1, 5, 7]
    assert hashes.reshape(-1, 2)[:, 0].tolist() == [1, 5, 7]
    assert parents.reshape(-1, 2)[:, 0].tolist() == [0, 4, 6]
    found, data = read(again, 5)
    assert found == record(5)
    assert (data == payload(5)).all()
    assert read(again, 0)[0] is None


def test_a_write_that_died_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(tmp_path / "a")
    writes = 0

    def die(file: int, view: memoryview, at: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 1:  # the record is blank, half of the payload is there
            whole(file, view[: len(view) // 2], at)
            raise OSError("killed")
        whole(file, view, at)

    whole = slab._write_whole
    monkeypatch.setattr(slab, "_write_whole", die)
    with pytest.raises(OSError, match="killed"):
        made.write(5, payload(50), record(50))
    made.close()
    assert Slab(tmp_path / "a", LAYOUT, KEY).scan()[0].tolist() == [1, 7]


def test_damaged_records_and_files_cut_short_are_not_read(tmp_path: Path) -> None:
    filled(tmp_path / "a").close()
    data = bytearray((tmp_path / "a").read_bytes())
    data[PAGE + 5 * RECORD_BYTES + 20] ^= 1
    (tmp_path / "a").write_bytes(data[: LAYOUT.payload_at + 7 * LAYOUT.block_bytes + 10])
    again = Slab(tmp_path / "a", LAYOUT, KEY)
    assert again.scan()[0].tolist() == [1, 7]
    assert read(again, 1)[0] == record(1)
    assert read(again, 7)[0] is None
    again.close()
    (tmp_path / "a").write_bytes(data[: PAGE + RECORD_BYTES])
    assert Slab(tmp_path / "a", LAYOUT, KEY).scan()[0].tolist() == []


@pytest.mark.parametrize(
    "other",
    [
        replace(LAYOUT, fingerprint=bytes(32)),
        replace(LAYOUT, block_bytes=5008),
        replace(LAYOUT, slots=9),
    ],
    ids=["model", "block", "slots"],
)
def test_a_slab_of_another_layout_is_begun_anew(tmp_path: Path, other: Layout) -> None:
    filled(tmp_path / "a").close()
    new = Slab(tmp_path / "a", other, b"another key 16 b")
    assert new.key == b"another key 16 b"
    assert new.scan()[0].tolist() == []
    assert (tmp_path / "a").stat().st_size == other.file_bytes


@pytest.mark.parametrize("at", [0, 9, 30, 60, 70])
def test_a_broken_header_begins_anew(tmp_path: Path, at: int) -> None:
    filled(tmp_path / "a").close()
    data = bytearray((tmp_path / "a").read_bytes())
    data[at] ^= 0x40
    (tmp_path / "a").write_bytes(data)
    assert Slab(tmp_path / "a", LAYOUT, KEY).scan()[0].tolist() == []


def test_a_slab_has_one_user_and_is_its_own(tmp_path: Path) -> None:
    made = filled(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0
    with pytest.raises(SetupError, match="in use by another engine"):
        Slab(tmp_path / "a", LAYOUT, KEY)
    made.close(remove=True)
    assert not (tmp_path / "a").exists()


def test_a_place_that_cannot_be_written_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot use"):
        Slab(tmp_path / "file" / "a", LAYOUT, KEY)
