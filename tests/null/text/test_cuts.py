# SPDX-License-Identifier: MIT
"""Cuts: parts encoded apart give the ids of the whole, and a token that may not be a cut is none."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import AddedToken

from tokenspeed.text.cuts import Cuts


def tokens(*contents: str, **fields: bool) -> dict[int, AddedToken]:
    return {i: AddedToken(content, **({"normalized": False} | fields)) for i, content in enumerate(contents)}


@pytest.mark.parametrize(
    ("added", "isolated"),
    [
        (tokens("<|a|>", "<|b|>"), {"<|a|>", "<|b|>"}),
        (tokens("<a>", "<a><b>"), {"<a><b>"}),  # the longer one wins where both begin
        (tokens("<a>", "x<a>"), set()),  # begins with a word's letter, and hides the other
        (tokens("<ab>", "<<ab>"), {"<<ab>"}),  # the one that begins first wins
        (tokens("<a|", "|b>"), set()),
        (tokens("||"), set()),  # overlaps itself
        (tokens("<a>", lstrip=True), set()),
        (tokens("<a>", rstrip=True), set()),
        (tokens("<a>", single_word=True), set()),
        (tokens("<a>", normalized=True), set()),
        (tokens("word", " <a>", "<a>\n"), set()),
    ],
)
def test_only_tokens_that_nothing_can_overlap_are_cuts(added, isolated):
    assert set(Cuts(added, 100).tokens.values()) == isolated


def test_text_and_ids_must_tell_the_same_story():
    cuts = Cuts(tokens("<|a|>", "<|b|>"), 10)
    starts, ends, indexes = cuts.locate(b"<|a|>xy<|b|>", np.array([0, 7, 7, 1]))
    assert (starts.tolist(), ends.tolist(), indexes.tolist()) == ([0, 7], [5, 12], [0, 3])
    assert not len(cuts.locate(b"<|a|>xy", np.array([0, 7, 7, 1]))[0])
    assert not len(cuts.locate(b"xy", np.array([7, 7]))[0])


def test_parts_between_cuts_encode_alone_as_they_do_together(vocabulary, rounds):
    """In every text, cut at every cut token: the ids before it and those from it on are the whole's."""
    dice = random.Random(7)
    specials = sorted(vocabulary.cuts.tokens.values())
    pieces = [
        *specials[-12:],
        "<|im_",
        "start|>",
        "<",
        ">",
        "\n",
        "\n\n",
        "  ",
        " the",
        "x",
        "1",
        "你好",
        "e\u0301",
        "🙂",
        "\u0301",
    ]
    for _ in range(rounds):
        text = "".join(dice.choices(pieces, k=dice.randrange(2, 24)))
        whole = vocabulary.encode(text, add_special_tokens=False)
        starts, _, indexes = vocabulary.cuts.locate(text.encode(), np.array(whole, np.int64))
        assert len(starts) == sum(text.count(special) for special in specials)
        if len(starts):
            at = dice.randrange(len(starts))
            before, after = text.encode()[: starts[at]].decode(), text.encode()[starts[at] :].decode()
            parts = [vocabulary.encode(part, add_special_tokens=False) for part in (before, after)]
            assert [len(parts[0]), parts[0] + parts[1]] == [indexes[at], whole]
