# SPDX-License-Identifier: MIT
"""Log probabilities in the two shapes of the OpenAI dialect.

A token's text is its own bytes read as UTF-8, broken characters replaced; `bytes` are exact. JSON has no
infinity, so a log probability below -9999 is reported as that.
"""

from __future__ import annotations

from typing import Any, Final

from tokenspeed.base.sampling import TokenLogprob
from tokenspeed.text.tokenizer import Tokenizer

_LOWEST: Final = -9999.0


def chat_logprobs(tokenizer: Tokenizer, logprobs: list[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    return {
        "content": [
            _entry(tokenizer, item.id, item.logprob)
            | {"top_logprobs": [_entry(tokenizer, token_id, value) for token_id, value in item.top]}
            for item in logprobs
        ],
        "refusal": None,
    }


def completion_logprobs(tokenizer: Tokenizer, logprobs: list[TokenLogprob], offset: int) -> dict[str, Any]:
    """`logprobs` of a completion choice; `offset` is where its first token's text begins."""
    tokens = [_text(tokenizer, item.id) for item in logprobs]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [max(item.logprob, _LOWEST) for item in logprobs],
        "top_logprobs": [
            {_text(tokenizer, token_id): max(value, _LOWEST) for token_id, value in item.top}
            for item in logprobs
        ],
        "text_offset": offsets,
    }


def echoed_logprobs(tokenizer: Tokenizer, ids: list[int], logprobs: list[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a prompt's tokens, of which the first has none."""
    first = _text(tokenizer, ids[0])
    rest = completion_logprobs(tokenizer, logprobs, len(first))
    head = {"tokens": [first], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    return {name: head[name] + rest[name] for name in head}


def joined_logprobs(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two such documents, one after the other."""
    if one is None or other is None:
        return one or other
    return {name: one[name] + other[name] for name in one}


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": data.decode(errors="replace"), "logprob": max(logprob, _LOWEST), "bytes": list(data)}


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode(errors="replace")
