# SPDX-License-Identifier: MIT
"""Sentences of grammars, taken at random, are read back by their dialect's parser; `sentences.py` does so at length."""

from __future__ import annotations

import random

import pytest

from tests.null.text import sentences
from tokenspeed.text.tools.families import FAMILIES

COUNT = 25


@pytest.mark.parametrize("name", FAMILIES)
def test_sentences_are_calls_of_the_tools_on_offer(name: str) -> None:
    walker = sentences.Walker.of(FAMILIES[name])
    ended = [
        sentences.check(FAMILIES[name], walker, random.Random(f"{name} {seed}")) for seed in range(COUNT)
    ]
    assert sum(text is not None for text in ended) > COUNT / 2
