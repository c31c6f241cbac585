# SPDX-License-Identifier: MIT
"""Collect the text that the bundled model is trained on: agent sessions and permissively licensed Python.

In: a `agent_sessions.jsonl.gz` file (OpenAI messages, one session a line) and the roots of Python
installations. Out: iterators over `Session` and `Source`. Sources are deduplicated by shingles of four lines,
so a file that mostly repeats an earlier one (copies between installations, generated model files) is dropped.
Does not tokenise, render or write anything. Used by the other `tools/bundled_*.py` scripts."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, Any]

SOURCE_BYTES_MIN = 200
SOURCE_BYTES_MAX = 200_000
SHINGLE_LINES = 4
REPEATED_SHARE_MAX = 0.5
PACKAGE_BYTES_MAX = 14_000_000

# Import name -> licence. Only what is listed here is read; copyleft packages are left out on purpose.
LICENCES = {
    "accelerate": "Apache-2.0",
    "anyio": "MIT",
    "attr": "MIT",
    "botocore": "Apache-2.0",
    "click": "BSD-3-Clause",
    "cloudpickle": "BSD-3-Clause",
    "flask": "BSD-3-Clause",
    "fsspec": "BSD-3-Clause",
    "graphql": "MIT",
    "grimp": "BSD-2-Clause",
    "h11": "MIT",
    "httpcore": "BSD-3-Clause",
    "httpx": "BSD-3-Clause",
    "huggingface_hub": "Apache-2.0",
    "IPython": "BSD-3-Clause",
    "jedi": "MIT",
    "jinja2": "BSD-3-Clause",
    "jsonschema": "MIT",
    "libcst": "MIT",
    "markdown_it": "MIT",
    "mpmath": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "oauthlib": "BSD-3-Clause",
    "packaging": "Apache-2.0 OR BSD-2-Clause",
    "parso": "MIT",
    "prometheus_client": "Apache-2.0",
    "prompt_toolkit": "BSD-3-Clause",
    "psutil": "BSD-3-Clause",
    "pydantic": "MIT",
    "pygments": "BSD-2-Clause",
    "_pytest": "MIT",
    "requests": "Apache-2.0",
    "rich": "MIT",
    "scikit_build_core": "Apache-2.0",
    "scipy": "BSD-3-Clause",
    "setuptools": "MIT",
    "sortedcontainers": "Apache-2.0",
    "starlette": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "torchgen": "BSD-3-Clause",
    "traitlets": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "trio": "MIT OR Apache-2.0",
    "typer": "MIT",
    "urllib3": "MIT",
    "uvicorn": "BSD-3-Clause",
    "werkzeug": "BSD-3-Clause",
    "zmq": "BSD-3-Clause",
}
STDLIB = "cpython"
STDLIB_LICENCE = "PSF-2.0"
# Tables of numbers, codec maps and vendored copies: bytes without language.
SKIPPED_PARTS = frozenset(
    {"site-packages", "encodings", "lib2to3", "_vendor", "idlelib", "_vendored_packages", "__pycache__"}
)


@dataclass(frozen=True, slots=True)
class Source:
    package: str
    licence: str
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Session:
    id: str
    source: str
    group: str
    messages: list[Message]


def read_sessions(path: Path) -> list[Session]:
    """Read all sessions, one JSON object a line."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [Session(r["id"], r["source"], r["group"], r["messages"]) for r in records]


def iter_sources(library_roots: list[Path]) -> Iterator[Source]:
    """Yield deduplicated Python files of each root's standard library and of its packages, in stable order.

    No package but the standard library gives more than `PACKAGE_BYTES_MAX`.
    """
    seen: set[bytes] = set()
    taken: Counter[str] = Counter()
    for root in library_roots:
        for package, licence, path in _iter_paths(root):
            if package != STDLIB and taken[package] > PACKAGE_BYTES_MAX:
                continue
            text = _read_source(path)
            if text is not None and not _is_repeat(text, seen):
                taken[package] += len(text)
                yield Source(package, licence, str(path.relative_to(root)), text)


def _iter_paths(root: Path) -> Iterator[tuple[str, str, Path]]:
    site = root / "site-packages"
    # Ordered by a digest of the path, so that a package cut short is sampled evenly.
    for path in sorted(
        root.rglob("*.py"), key=lambda p: hashlib.md5(str(p.relative_to(root)).encode()).digest()
    ):
        parts = path.relative_to(root).parts
        if path.is_relative_to(site):
            package = parts[1]
            if package in LICENCES and not SKIPPED_PARTS.intersection(parts[2:-1]):
                yield package, LICENCES[package], path
        elif (root / "asyncio").is_dir() and not SKIPPED_PARTS.intersection(parts[:-1]):
            yield STDLIB, STDLIB_LICENCE, path


def _read_source(path: Path) -> str | None:
    if not SOURCE_BYTES_MIN <= path.stat().st_size <= SOURCE_BYTES_MAX:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    longest = max(map(len, text.splitlines()), default=0)
    return text if longest <= 400 and "\x00" not in text else None


def _is_repeat(text: str, seen: set[bytes]) -> bool:
    """Say whether most shingles of `text` were seen before; remember them either way."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 3]
    shingles = {
        hashlib.blake2b("\n".join(lines[i : i + SHINGLE_LINES]).encode(), digest_size=8).digest()
        for i in range(max(1, len(lines) - SHINGLE_LINES + 1))
    }
    repeated = len(shingles & seen)
    seen |= shingles
    return repeated > REPEATED_SHARE_MAX * len(shingles)
