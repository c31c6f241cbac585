# SPDX-License-Identifier: MIT
"""Filling in the middle: found by the vocabulary's tokens, laid out as the family was taught."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from tokenspeed.text.fill import FORMATS, Fill
from tokenspeed.text.tokenizer import Tokenizer


def tokenizer_with(*tokens: str) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    return Tokenizer(backend, {})


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.before)
def test_a_format_is_found_by_its_tokens_and_laid_out(form):
    tokenizer = tokenizer_with(*form.tokens, "<|file_sep|>")
    fill = Fill.of(tokenizer)
    assert fill is not None
    assert fill.format is form
    said = [tokenizer.token(token_id) for token_id in fill.prompt([0], [1])]
    before, after, middle = [form.before, "a"], [form.after, "b"], [form.middle] if form.middle else []
    assert said == [*(after + before if form.after_first else before + after), *middle]
    assert set(fill.stop_ids) == {*fill.ids, tokenizer.token_id("<|file_sep|>")}


def test_a_vocabulary_without_all_tokens_has_none():
    assert Fill.of(tokenizer_with()) is None
    assert Fill.of(tokenizer_with("<|fim_prefix|>", "<|fim_suffix|>")) is None
