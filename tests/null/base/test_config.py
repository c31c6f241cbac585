# SPDX-License-Identifier: MIT
"""The configuration: every field is read by somebody, and every mistake is named."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import tokenspeed
from tokenspeed.base import config
from tokenspeed.base.errors import SetupError

PACKAGE = Path(tokenspeed.__file__).parent


def test_every_field_is_read_somewhere() -> None:
    read = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "base/config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert {option.name for option in config.options()} <= read


def test_names_are_unique_over_the_branches() -> None:
    names = [option.name for option in config.options()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"no_such": 1}, "unknown option 'no_such'; known: "),
        ({"port": None}, "port needs a value"),
        ({"port": "80"}, "'80' is not of type int"),
        ({"threads": True}, "True is not of type int"),
        ({"port": 65536}, r"it must be in 0\.\.65535"),
        ({"layers": 0}, "it must be at least 1"),
        ({"dtype": "int4"}, "'int4' is none of auto, bfloat16, float32"),
        ({"kernel": "norm.rms=ref"}, "give a tuple of values"),
        ({"kernel": (1,)}, "1 is not of type str"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        config.build(**values)
