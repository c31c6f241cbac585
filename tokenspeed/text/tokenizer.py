# SPDX-License-Identifier: MIT
"""Text to token ids, and what is known of each id, from a model directory.

In: `tokenizer.json`, or tiktoken ranks (`*.tiktoken`, `tiktoken.model`), with `tokenizer_config.json` beside
it. Out: a `Tokenizer`. Encoding releases the GIL and may run in any thread; callers on an event loop use an
executor. It does not render chat templates, and decoding generated ids piece by piece is `detokenise`'s work.

Invariant: `encode` equals the source tokenizer's own result, id for id; special tokens written in the text
are recognised, as in the reference implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import tokenizers

from tokenspeed.base.errors import SetupError
from tokenspeed.text import tiktoken_ranks
from tokenspeed.text.cuts import Cuts

CONFIG_FILE: Final = "tokenizer_config.json"
MODEL_FILE: Final = "tokenizer.json"


class Tokenizer:
    """A model's vocabulary. Immutable after construction; safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        self._backend = backend
        self.config = config
        added = backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self.bos_token = _token_text(config.get("bos_token"))
        self.eos_token = _token_text(config.get("eos_token"))
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        """One more than the largest id; a model's logits may be padded beyond it."""
        self.byte_table = (
            _byte_table(vocabulary, self.vocab_size) if _is_byte_level(backend.decoder) else None
        )
        """Bytes of each id where the vocabulary is byte-level (a text is their concatenation), else None."""
        whole = backend.truncation is None and backend.padding is None
        self.cuts = Cuts(added if whole else {}, self.vocab_size)
        """Tokens before which a text may be cut and encoded in parts."""
        self._frame = _Frame.of(self)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read the tokenizer of a model directory; `SetupError` names the files looked for."""
        config = _read_config(directory / CONFIG_FILE)
        model_file = directory / MODEL_FILE
        if model_file.is_file():
            try:
                # The library raises bare Exception for a malformed file.
                return cls(tokenizers.Tokenizer.from_file(str(model_file)), config)
            except Exception as error:
                raise SetupError(f"{model_file} is not a readable tokenizer: {error}") from error
        ranks_file = tiktoken_ranks.find(directory)
        if ranks_file is not None:
            return cls(tiktoken_ranks.load(ranks_file, config), config)
        raise SetupError(
            f"{directory} holds no tokenizer: looked for {MODEL_FILE}, tiktoken.model and *.tiktoken; "
            "pass --tokenizer DIR to take it from elsewhere"
        )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of `text`; `add_special_tokens` adds what the model expects around plain text (a BOS, say)."""
        ids = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return [*self._frame.before, *ids, *self._frame.after] if add_special_tokens else ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Text of a whole sequence of ids; ids beyond the vocabulary yield nothing."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """Id of an exact token, or None."""
        return self._backend.token_to_id(token)

    def token(self, token_id: int) -> str:
        """The token as the vocabulary spells it; empty beyond the vocabulary."""
        return self._backend.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one id, as the logprobs of the API report them."""
        table = self.byte_table
        if table is not None:
            return table[token_id] if 0 <= token_id < len(table) else b""
        return self.decode([token_id]).encode()


@dataclass(frozen=True, slots=True)
class _Frame:
    """Ids put before and after plain text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Frame:
        """What the post-processor adds, corrected by explicit `add_bos_token` / `add_eos_token`."""
        backend = tokenizer._backend  # pyright: ignore[reportPrivateUsage]
        probe = backend.encode("x", add_special_tokens=True)
        core = backend.encode("x", add_special_tokens=False).ids
        start = next((i for i, special in enumerate(probe.special_tokens_mask) if not special), len(core))
        before, after = list(probe.ids[:start]), list(probe.ids[start + len(core) :])
        for side, key, token in (
            (before, "add_bos_token", tokenizer.bos_token),
            (after, "add_eos_token", tokenizer.eos_token),
        ):
            wanted, token_id = tokenizer.config.get(key), backend.token_to_id(token) if token else None
            if wanted is True and token_id is not None and token_id not in side:
                side.append(token_id)
            elif wanted is False and token_id in side:
                side.remove(token_id)
        return cls(tuple(before), tuple(after))


def _byte_table(vocabulary: dict[str, int], vocab_size: int) -> list[bytes]:
    table = [b""] * vocab_size
    for token, token_id in vocabulary.items():
        table[token_id] = tiktoken_ranks.token_bytes(token)
    return table


def _is_byte_level(decoder: Any) -> bool:
    if decoder is None:
        return False
    state = msgspec.json.decode(decoder.__getstate__())
    while state["type"] == "Sequence" and len(state["decoders"]) == 1:
        state = state["decoders"][0]
    return state["type"] == "ByteLevel"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise SetupError(f"{path} is not a JSON object: {error}") from error


def _token_text(value: Any) -> str | None:
    """A token given as a string or as an added-token record."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
