# SPDX-License-Identifier: MIT
"""Where a model lies: from the name an operator gives to a local directory.

In: a directory, a Hugging Face hub id, or nothing (the bundled model). Out: a directory that holds
`config.json`. Downloads only what the engine reads, and only when a hub id is given. Reads no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from tokenspeed.base.errors import SetupError

BUNDLED: Final = Path(__file__).resolve().parent.parent / "bundled" / "tokenspeed-demo"
FILES: Final = ("*.json", "*.safetensors", "*.tiktoken", "tiktoken.model", "*.jinja")


def locate(model: str | None) -> Path:
    """The directory of `model`; `SetupError` says what was looked for and what would work."""
    if model is None:
        return _checked(BUNDLED, "the bundled model")
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path.resolve(), model)
    if path.is_file():
        raise SetupError(f"{model} is a file; give the directory that holds config.json and *.safetensors")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise SetupError(f"{model} is no directory here and no hub id (ORG/NAME); give one of these")
    return _checked(_download(model), model)


def _checked(directory: Path, name: str) -> Path:
    if not (directory / "config.json").is_file():
        raise SetupError(f"{name} holds no config.json; a model directory has config.json and *.safetensors")
    return directory


def _download(repo_id: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(FILES)))
    except LocalEntryNotFoundError as error:
        raise SetupError(
            f"{repo_id} is no directory here, and the hub cannot be reached to fetch it"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SetupError(f"{repo_id} is no directory here, and the hub did not give it: {error}") from error
