# SPDX-License-Identifier: MIT
"""What a checkpoint's authors recommend: sampling defaults and the ids that end an answer.

In: `generation_config.json` and `config.json` of a model directory. Out: a `GenerationDefaults` whose None
fields say nothing. Defaults fill what a request leaves unset, and only that (rule R10).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tokenspeed.base.errors import RequestError, SetupError
from tokenspeed.base.sampling import SamplingParams


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Recommended values; None where the checkpoint is silent."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def load(cls, directory: Path) -> GenerationDefaults:
        """Read a model directory; a missing file is an empty one. `SetupError` for values out of range."""
        recommended = _read(directory / "generation_config.json")
        if recommended.get("eos_token_id") is None:
            recommended["eos_token_id"] = _read(directory / "config.json").get("eos_token_id")
        if recommended.get("top_k") == -1:  # some say -1 for off
            recommended["top_k"] = 0
        try:
            defaults = msgspec.convert(recommended, cls)
            defaults.sampling().check()  # a request that leaves them unset must not be blamed for them
        except (msgspec.ValidationError, RequestError) as error:
            raise SetupError(f"{directory / 'generation_config.json'}: {error}") from error
        return defaults

    def sampling(self) -> SamplingParams:
        """The recommended sampling; neutral where the checkpoint is silent."""
        values: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition": self.repetition_penalty,
        }
        return SamplingParams(**{name: value for name, value in values.items() if value is not None})

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, possibly none."""
        ids = self.eos_token_id
        return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.is_file() else {}
    except msgspec.MsgspecError as error:
        raise SetupError(f"{path} is not a JSON object: {error}") from error
