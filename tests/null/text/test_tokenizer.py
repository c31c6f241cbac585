# SPDX-License-Identifier: MIT
"""Tokenizers: exact with respect to their source, whole files refused with words."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.base.errors import SetupError
from tokenspeed.text import tiktoken_ranks
from tokenspeed.text.tokenizer import Tokenizer

QWEN = Path(__file__).parents[4] / "shared" / "data" / "tokenizers" / "qwen.tiktoken"
QWEN_PATTERN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""
    r"""|\s+(?!\S)|\s+"""
)
WORDS = (
    "def",
    "return",
    " ",
    "  ",
    "\n",
    "\t",
    "'s",
    "1234",
    "héllo",
    "你好",
    "🙂",
    "…",
    "<|im_start|>",
    "a",
    "Z",
    "_",
    "ﬁ",
)


def write_ranks(directory: Path, name: str) -> Path:
    tokens = [bytes([b]) for b in range(256)] + [
        b"th",
        b"he",
        b"the",
        b" the",
        b"aa",
        b"aaa",
        b"aaaa",
        b"12",
        b"123",
    ]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (directory / name).write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_ranks(tmp_path_factory.mktemp("kimi"), "tiktoken.model")
    config = {
        "added_tokens_decoder": {
            "265": {"content": "[BOS]", "special": True},
            "268": {"content": "<|im_end|>"},
        }
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|im_end|>"}))
    return directory


def test_encode_recognises_special_tokens_and_decodes_back(model_directory):
    tokenizer = Tokenizer.load(model_directory)
    ids = tokenizer.encode("<|im_start|>the cat 你好<a b>", add_special_tokens=False)
    assert ids[0] == tokenizer.token_id("<|im_start|>")
    assert tokenizer.decode(ids) == "<|im_start|>the cat 你好<a b>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the cat 你好<a b>"
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<s>")
    assert tokenizer.vocab_size == tokenizer.token_id("<a b>") + 1


@pytest.mark.parametrize(("wanted", "starts"), [(True, True), (False, False), (None, False)])
def test_explicit_add_bos_token_is_obeyed(model_directory, tmp_path, wanted, starts):
    (tmp_path / "tokenizer.json").write_bytes((model_directory / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": wanted}))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("the", add_special_tokens=True)
    assert (ids[0] == tokenizer.token_id("<s>")) is starts
    assert tokenizer.encode("the", add_special_tokens=False)[0] != tokenizer.token_id("<s>")


@given(st.text(max_size=40))
def test_byte_table_concatenates_to_the_text(model_directory, text):
    tokenizer = Tokenizer.load(model_directory)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(i) for i in ids).decode() == tokenizer.decode(ids)


def test_missing_and_broken_tokenizers_are_refused_with_words(tmp_path):
    with pytest.raises(SetupError, match="--tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SetupError, match="not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tiktoken.model").write_text("!!! 3\n")
    with pytest.raises(SetupError, match="line 1"):
        Tokenizer.load(tmp_path)


def test_rank_file_gives_tokens_of_the_configuration_and_reserved_names(kimi):
    tokenizer = Tokenizer.load(kimi)
    assert tokenizer.token_id("[BOS]") == 265
    assert tokenizer.token_id("<|im_end|>") == 268
    assert tokenizer.token_id("<|reserved_token_266|>") == 266
    assert tokenizer.vocab_size == 265 + 256
    assert tokenizer.encode("the<|im_end|>", add_special_tokens=False) == [258, 268]


@given(text=st.text(alphabet="ahet 123A中\n'sé", max_size=60))
def test_rank_file_agrees_with_tiktoken(kimi, text):
    family = tiktoken_ranks._FAMILIES["kimi"]
    ranks = tiktoken_ranks._read_ranks(kimi / "tiktoken.model")
    reference = tiktoken.Encoding("kimi", pat_str=family.pattern, mergeable_ranks=ranks, special_tokens={})
    assert Tokenizer.load(kimi).encode(text, add_special_tokens=False) == reference.encode(text)


@pytest.mark.skipif(not QWEN.is_file(), reason="the real vocabulary is not beside the repository")
def test_real_qwen_vocabulary_agrees_with_tiktoken():
    tokenizer = Tokenizer.load(QWEN.parent)
    assert [tokenizer.token_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [
        151643,
        151644,
        151645,
    ]
    ranks = tiktoken_ranks._read_ranks(QWEN)
    specials = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    reference = tiktoken.Encoding(
        "qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )
    draw = random.Random(7)
    pieces = [token.decode() for token in ranks if token.isascii()]
    texts = ["".join(draw.choices(WORDS + tuple(draw.choices(pieces, k=6)), k=40)) for _ in range(300)]
    texts.append(Path(__file__).read_text())
    for text in texts:
        normal = tokenizer._backend.normalizer.normalize_str(text)
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(
            normal, allowed_special="all"
        )
