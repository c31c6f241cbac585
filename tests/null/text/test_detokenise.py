# SPDX-License-Identifier: MIT
"""Detokenising: the pieces joined are the whole, and no piece ends inside a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from tokenspeed.text import detokenise
from tokenspeed.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def byte_level(model_directory) -> Tokenizer:
    return Tokenizer.load(model_directory)


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    words = {"▁the": 256, "▁cat": 257, "s": 258, "é": 259, "▁": 260}
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | words
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend, {})


@given(st.lists(st.integers(0, 420), max_size=30))
def test_byte_level_pieces_join_to_the_whole(byte_level, ids):
    state = detokenise.start(byte_level)
    pieces = [state.feed([i]) for i in ids]
    known = [i for i in ids if i < byte_level.vocab_size]
    assert "".join(pieces) + state.flush() == byte_level.decode(known)
    whole = detokenise.start(byte_level)
    assert whole.feed(ids) + whole.flush() == byte_level.decode(known)


@given(st.text(max_size=20))
def test_no_replacement_character_for_valid_text(byte_level, text):
    state = detokenise.start(byte_level)
    for token_id in byte_level.encode(text, add_special_tokens=False):
        assert ("\ufffd" in state.feed([token_id])) <= ("\ufffd" in text)
    assert ("\ufffd" in state.flush()) <= ("\ufffd" in text)


@given(st.text(alphabet="é你🙂", max_size=6), st.lists(st.sampled_from([256, 257, 258, 259]), max_size=5))
def test_byte_fallback_pieces_join_to_the_whole(byte_fallback, text, words):
    ids = [*words, *text.encode(), *words]
    state = detokenise.start(byte_fallback)
    assert "".join(state.feed([i]) for i in ids) + state.flush() == byte_fallback.decode(ids)


def test_byte_fallback_keeps_the_space_after_a_prompt(byte_fallback):
    assert detokenise.start(byte_fallback).feed([257]) == "cat"
    assert detokenise.start(byte_fallback, prompt=[256]).feed([257]) == " cat"


def test_byte_fallback_gives_up_on_endless_garbage(byte_fallback):
    state = detokenise.start(byte_fallback)
    assert "\ufffd" in "".join(state.feed([0xFF]) for _ in range(20))


def test_hidden_ids_yield_nothing(byte_level):
    end = byte_level.token_id("<|im_end|>")
    ids = [*byte_level.encode("cat", add_special_tokens=False), end]
    assert detokenise.start(byte_level, hidden=byte_level.special_ids).feed(ids) == "cat"
    assert detokenise.start(byte_level).feed(ids) == "cat<|im_end|>"
