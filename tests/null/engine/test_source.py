# SPDX-License-Identifier: MIT
"""From a model's name to its directory: what is there is found, what is not says what would work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.engine import source


def test_nothing_is_the_bundled_model() -> None:
    assert source.locate(None) == source.BUNDLED
    assert (source.BUNDLED / "model.safetensors").is_file()


def test_a_directory_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert source.locate(str(tmp_path)) == tmp_path.resolve()


def test_a_tokenizer_needs_no_model_beside_it(tmp_path: Path) -> None:
    assert source.locate_tokenizer(str(tmp_path)) == tmp_path.resolve()
    with pytest.raises(SetupError, match="no directory here"):
        source.locate_tokenizer(str(tmp_path / "absent"))


def test_what_is_no_model_says_what_would_be(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    cases = {
        str(tmp_path): r"config\.json",
        str(weights): "give the directory",
        str(tmp_path / "absent"): "no directory here",
        "./absent/model": "no directory here",
        "one-word": "ORG/NAME",
    }
    for name, message in cases.items():
        with pytest.raises(SetupError, match=message):
            source.locate(name)
