# SPDX-License-Identifier: MIT
"""Tokenise the bundled model's corpus into flat arrays that `train_bundled.py` samples windows from.

In: agent sessions, Python installations, the model folder (tokenizer and chat template). Out, per set and
part (train, validation): one `.xz` file of uint16 ids with documents in random order, each closed by
`<|endoftext|>`, and `manifest.json` with sizes, packages and licences. Document starts and the loss mask are
recovered from the ids alone (`document_starts`, `answer_mask`), so nothing else is stored. Does not filter by
quality. Invariant: no held-out task group or file is in a train part; chats of the validation part use
functions that no training chat uses (their files may be in the code set).

    python tools/bundled_pack.py --sessions agent_sessions.jsonl.gz --libraries LIB... --model DIR --out DIR
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from bundled_corpus import (
    LICENCES,
    STDLIB,
    STDLIB_LICENCE,
    Message,
    Session,
    Source,
    iter_sources,
    read_sessions,
)
from bundled_samples import Function, harvest, iter_samples, iter_snippets
from bundled_sessions import Chat, clean, infer_tools, is_held_out, whole, windows
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Ids = NDArray[np.uint16]

COUNTS = {
    "train": {"tool_call": 40_000, "documented_code": 24_000, "written_code": 8_000, "talk": 12_000},
    "validation": {"tool_call": 300, "documented_code": 300, "written_code": 100, "talk": 100},
}
SNIPPETS = {"train": 3000, "validation": 100}
TOOL_PROMPTS = 100
MARKER_NAMES = ("tool_call", "tool_response", "think")
BATCH_DOCUMENTS = 256


def document_starts(ids: Ids, end_of_text: int) -> NDArray[np.int64]:
    """Return the first position of every document."""
    ends = np.flatnonzero(ids == end_of_text)
    return np.concatenate([[0], ends[:-1] + 1])


def answer_mask(ids: Ids, start: int, end: int, assistant: list[int]) -> NDArray[np.bool_]:
    """Mark what the assistant writes, its end marker included; ids without turn markers are all marked.

    Args: `start`, `end`: the turn markers; `assistant`: the ids after `start` in an assistant turn.
    """
    starts = np.flatnonzero(ids == start)
    ends = np.flatnonzero(ids == end)
    assert len(starts) == len(ends)
    assert np.all(starts < ends)
    if not len(starts):
        return np.ones(len(ids), dtype=np.bool_)
    change = np.zeros(len(ids) + 1, dtype=np.int8)
    is_answer = np.all([ids[starts + 1 + i] == token for i, token in enumerate(assistant)], axis=0)
    change[starts[is_answer] + 1 + len(assistant)] = 1
    change[ends[is_answer] + 1] -= 1
    return np.cumsum(change[:-1]).astype(np.bool_)


def _without_markers(text: str) -> str:
    """Spell markers that occur inside a text so that they stay text."""
    text = text.replace("<|", "< |")
    for name in MARKER_NAMES:
        text = text.replace(f"<{name}>", f"< {name}>").replace(f"</{name}>", f"</ {name}>")
    return text


def _plain(value: object) -> object:
    """Apply `_without_markers` to every string of a JSON value."""
    if isinstance(value, str):
        return _without_markers(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


class Packer:
    """Renders and encodes documents; writes one compressed file per set and part."""

    def __init__(self, model: Path, out: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
        self.end_of_text: int = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.out = out
        self.tokens: dict[str, int] = {}
        out.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, texts: Iterable[str], seed: int = 0) -> None:
        """Encode `texts` in random order into `NAME.xz`."""
        shuffled = list(texts)
        random.Random(seed).shuffle(shuffled)
        ids = np.concatenate(list(self._encode(shuffled)))
        (self.out / f"{name}.xz").write_bytes(lzma.compress(ids.tobytes(), preset=6))
        self.tokens[name] = len(ids)
        print(f"{name}: {len(shuffled)} documents, {len(ids) / 1e6:.2f} M tokens", flush=True)

    def _encode(self, texts: list[str]) -> Iterator[Ids]:
        for first in range(0, len(texts), BATCH_DOCUMENTS):
            for encoded in self.tokenizer(texts[first : first + BATCH_DOCUMENTS])["input_ids"]:
                yield np.array([*encoded, self.end_of_text], dtype=np.uint16)

    def render(self, chat: Chat) -> str:
        """Render a chat with the model's own template, markers inside the texts defused."""
        messages: list[Message] = _plain(chat.messages)  # type: ignore[assignment]
        return self.tokenizer.apply_chat_template(messages, tools=_plain(chat.tools) or None, tokenize=False)


def part_of(key: str, one_in: int) -> str:
    return "validation" if zlib.crc32(key.encode()) % one_in == 0 else "train"


def pack_sessions(packer: Packer, sessions: list[Session]) -> None:
    histories = [clean(session) for session in sessions]
    schemas = infer_tools(histories)
    rng = random.Random(0)
    for part in ("train", "validation"):
        chosen = [
            m
            for s, m in zip(sessions, histories, strict=True)
            if is_held_out(s.group) == (part == "validation")
        ]
        packer.write(f"sessions.{part}", (packer.render(whole(m, schemas, rng)) for m in chosen))
        packer.write(f"windows.{part}", (packer.render(c) for m in chosen for c in windows(m, schemas, rng)))


def pack_code(packer: Packer, sources: list[Source]) -> None:
    for part in ("train", "validation"):
        packer.write(
            f"code.{part}", (_without_markers(s.text) for s in sources if part_of(s.path, 150) == part)
        )


def pack_samples(packer: Packer, functions: list[Function]) -> None:
    """Write the synthetic chats, the bare snippets, and held-out tool requests for `bundled_evaluate.py`."""
    for part, seed in (("train", 1), ("validation", 2)):
        chosen = [f for f in functions if part_of(f.name, 20) == part]
        texts: dict[str, list[str]] = {}
        for kind, chat in iter_samples(chosen, seed, COUNTS[part]):
            texts.setdefault(kind, []).append(packer.render(chat))
        for kind, rendered in texts.items():
            packer.write(f"{kind}.{part}", rendered)
        packer.write(f"snippets.{part}", iter_snippets(seed, SNIPPETS[part]))
    held_out = [f for f in functions if part_of(f.name, 20) == "validation"]
    chats = [asdict(chat) for _, chat in iter_samples(held_out, 3, {"tool_call": TOOL_PROMPTS})]
    (packer.out / "tool_prompts.json").write_text(json.dumps(chats))


def main() -> None:
    parser = argparse.ArgumentParser(description="tokenise the bundled model's corpus")
    parser.add_argument("--sessions", type=Path, required=True)
    parser.add_argument(
        "--libraries", type=Path, nargs="+", required=True, help="lib/python3.x folders, newest first"
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with tokenizer.json and chat_template.jinja"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    packer = Packer(args.model, args.out)
    sources = list(iter_sources(args.libraries))
    pack_samples(packer, harvest(sources))
    pack_code(packer, sources)
    sessions = read_sessions(args.sessions)
    pack_sessions(packer, sessions)
    size: Counter[str] = Counter()
    for source in sources:
        size[source.package] += len(source.text)
    licences = {STDLIB: STDLIB_LICENCE, **LICENCES}
    manifest = {
        "tokens": packer.tokens,
        "session_sources": Counter(s.source for s in sessions),
        "packages": {name: {"licence": licences[name], "bytes": size[name]} for name in sorted(size)},
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
