# SPDX-License-Identifier: MIT
"""Where a model lies: from the name an operator gives to a local directory.

In: a directory, a Hugging Face hub id, or nothing (the bundled model). Out: a directory that holds
`config.json`. Downloads only what the engine reads, and only when a hub id is given. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from tokenspeed.base.errors import SetupError

BUNDLED: Final = Path(__file__).resolve().parent.parent / "bundled" / "tokenspeed-demo"
TEXT_FILES: Final = ("*.json", "*.tiktoken", "tiktoken.model", "*.jinja")
FILES: Final = (*TEXT_FILES, "*.safetensors")


def locate(model: str | None) -> Path:
    """The directory of `model`; `SetupError` says what was looked for and what would work."""
    if model is None:
        return _checked(BUNDLED, "the bundled model")
    return _checked(_directory(model, FILES), model)


def locate_tokenizer(name: str) -> Path:
    """The directory of a tokenizer alone; it need not be a model's. What it must hold, the text plane says."""
    return _directory(name, TEXT_FILES)


def _directory(name: str, files: Sequence[str]) -> Path:
    """A directory here, or one of the hub with these of its files."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise SetupError(f"{name} is a file; give the directory that holds it")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise SetupError(f"{name} is no directory here and no hub id (ORG/NAME); give one of these")
    return _download(name, files)


def _checked(directory: Path, name: str) -> Path:
    if not (directory / "config.json").is_file():
        raise SetupError(f"{name} holds no config.json; a model directory has config.json and *.safetensors")
    return directory


def _download(repo_id: str, files: Sequence[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(files)))
    except LocalEntryNotFoundError as error:
        raise SetupError(
            f"{repo_id} is no directory here, and the hub cannot be reached to fetch it"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SetupError(f"{repo_id} is no directory here, and the hub did not give it: {error}") from error
