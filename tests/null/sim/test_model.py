# SPDX-License-Identifier: MIT
"""The simulated model is a function of the whole history, its tenant and the seed."""

from __future__ import annotations

from tokenspeed.sim import model


def test_folding_in_pieces_is_folding_whole() -> None:
    whole = model.fold(model.root(b"t"), range(10))
    assert model.fold(whole[4], range(4, 10)) == whole[4:]


def test_completion_feeds_its_tokens_back() -> None:
    history = model.root(b"")
    first, second = model.complete(history, 3, 2)
    assert first == model.sample(history, 3)
    assert second == model.sample(model.fold(history, [first])[-1], 3)


def test_every_part_of_a_history_changes_the_next_token() -> None:
    histories = [([1, 2, 3], b""), ([2, 1, 3], b""), ([1, 2], b""), ([0, 1, 2, 3], b""), ([1, 2, 3], b"\0")]
    tokens = {model.sample(model.fold(model.root(salt), ids)[-1], 7) for ids, salt in histories}
    assert len(tokens) == len(histories)


def test_seed_changes_the_next_token() -> None:
    assert len({model.sample(model.root(b""), seed) for seed in range(16)}) == 16


def test_tokens_are_of_the_vocabulary() -> None:
    assert all(0 <= token < model.VOCAB for token in model.complete(model.root(b""), 1, 200))
