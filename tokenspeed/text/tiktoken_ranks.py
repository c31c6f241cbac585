# SPDX-License-Identifier: MIT
"""tiktoken rank files as an equal `tokenizers` BPE, so that no second tokenizer library is needed.

In: lines of `base64(bytes) rank` and the special tokens of `tokenizer_config.json`. Out: a
`tokenizers.Tokenizer`. tiktoken joins whichever adjacent pair makes the token of lowest rank; the merge list
below names every such pair in that order, and a whole piece found in the vocabulary is taken as it is
(`ignore_merges`), so both give the same ids.

A rank file does not hold its split pattern or its special tokens: those are facts of the two families that
ship such files, kept in `_FAMILIES`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenspeed.base.errors import SetupError


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family that ships rank files splits text, and which special tokens follow the ranks."""

    pattern: str
    nfc: bool  # text is brought to Unicode NFC first
    specials: tuple[str, ...]  # in id order from the first id after the ranks
    reserved: str  # names the ids that neither `specials` nor the configuration names
    reserved_total: int  # ids after the ranks
    reserved_from: int  # number in the name of the first reserved id


_LETTERS: Final = r"\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_SUFFIX: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

_FAMILIES: Final[dict[str, _Family]] = {
    "qwen": _Family(
        pattern=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        nfc=True,
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        reserved="<|extra_{}|>",
        reserved_total=208,
        reserved_from=-3,
    ),
    "kimi": _Family(
        pattern="|".join(
            (
                r"[\p{Han}]+",
                rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_LETTERS}]*[\p{{Ll}}{_LETTERS}]+{_SUFFIX}",
                rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_LETTERS}]+[\p{{Ll}}{_LETTERS}]*{_SUFFIX}",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            )
        ),
        nfc=False,
        specials=(),
        reserved="<|reserved_token_{}|>",
        reserved_total=256,
        reserved_from=-1,  # named by the id itself
    ),
}


def find(directory: Path) -> Path | None:
    """The rank file of a model directory, or None."""
    named = directory / "tiktoken.model"
    return named if named.is_file() else next(iter(sorted(directory.glob("*.tiktoken"))), None)


def load(path: Path, config: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer of a rank file; `config` is the parsed tokenizer_config.json."""
    family = _FAMILIES["kimi" if path.name == "tiktoken.model" else "qwen"]
    ranks = _read_ranks(path)
    vocabulary = {_spell(token): rank for token, rank in ranks.items()}
    merges = [(_spell(left), _spell(right)) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added_tokens(family, max(ranks.values()) + 1, config))
    return tokenizer


def token_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; a token not so spelled (an added one) stands for its UTF-8."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise SetupError(f"{path}, line {number}: expected 'base64 rank'") from error
    if not ranks:
        raise SetupError(f"{path} holds no ranks")
    return ranks


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, by the rank of what it makes."""
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [
            (ranks[token[:cut]], ranks[token[cut:]], cut)
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        for _, _, cut in sorted(pairs):
            yield token[:cut], token[cut:]


def _added_tokens(family: _Family, first_id: int, config: dict[str, Any]) -> list[AddedToken]:
    """Special tokens in id order without gaps, as ids are handed out in that order."""
    named: dict[int, tuple[str, bool]] = {
        int(token_id): (token["content"], bool(token.get("special", True)))
        for token_id, token in config.get("added_tokens_decoder", {}).items()
    }
    for index, token in enumerate(family.specials):
        named.setdefault(first_id + index, (token, True))
    last_id = max(first_id + family.reserved_total - 1, *named, first_id)
    added: list[AddedToken] = []
    for token_id in range(first_id, last_id + 1):
        number = token_id if family.reserved_from == -1 else token_id - first_id + family.reserved_from
        content, special = named.get(token_id, (family.reserved.format(number), True))
        added.append(AddedToken(content, special=special, normalized=False))
    return added


def _byte_characters() -> dict[int, str]:
    """The printable stand-in of each byte in byte-level vocabularies."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    characters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in characters)
    return characters | {byte: chr(256 + index) for index, byte in enumerate(others)}


_CHARACTERS: Final = _byte_characters()
_BYTES: Final = {character: byte for byte, character in _CHARACTERS.items()}


def _spell(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)
