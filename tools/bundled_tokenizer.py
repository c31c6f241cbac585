# SPDX-License-Identifier: MIT
"""Train the bundled model's tokenizer: byte-level BPE of 8192 ids, the last nine of them chat and tool
markers.

In: sessions and Python sources (`bundled_corpus`). Out: `tokenizer.json` and `tokenizer_config.json` in the
model's folder. Lossless: no normaliser, and every byte has an id. Vocabulary padded to nothing: 8192 is a
multiple of 64.

    python tools/bundled_tokenizer.py --sessions agent_sessions.jsonl.gz --libraries LIB... --out DIR
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from bundled_corpus import Session, Source, iter_sources, read_sessions
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 8192
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Shown in decoded text (parsers read them), yet one id each.
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
# Qwen2's rule: words with their leading space, digits one by one, punctuation, newlines, other space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(texts: Iterator[str]) -> Tokenizer:
    """Learn merges from `texts` and append the markers as the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(CONTROL) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def sample_texts(
    sessions: list[Session], sources: list[Source], session_bytes: int, source_bytes: int
) -> Iterator[str]:
    """Draw message texts, tool arguments and source files up to the given sizes."""
    rng = random.Random(0)
    session_texts = [
        text
        for session in sessions
        for message in session.messages
        for text in (
            message.get("content") or "",
            message.get("reasoning_content") or "",
            *(json.dumps(call["function"]["arguments"]) for call in message.get("tool_calls") or []),
        )
    ]
    for texts, budget in ((session_texts, session_bytes), ([s.text for s in sources], source_bytes)):
        rng.shuffle(texts)
        for text in texts:
            if budget <= 0:
                break
            budget -= len(text)
            yield text


def write(tokenizer: Tokenizer, directory: Path, context_tokens: int) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers reads."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(CONTROL),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="train the bundled model's tokenizer")
    parser.add_argument("--sessions", type=Path, required=True)
    parser.add_argument(
        "--libraries", type=Path, nargs="+", required=True, help="lib/python3.x folders, newest first"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--context-tokens", type=int, default=131_072)
    args = parser.parse_args()
    texts = sample_texts(
        read_sessions(args.sessions), list(iter_sources(args.libraries)), 16_000_000, 24_000_000
    )
    write(train(texts), args.out, args.context_tokens)


if __name__ == "__main__":
    main()
