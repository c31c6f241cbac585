# SPDX-License-Identifier: MIT
"""Filling in the middle: the prompt that asks a model for what stands between two texts.

In: a tokenizer, the ids of the texts before and after. Out: ids. A format is found by the tokens that a vocabulary
holds, never by a model's name; a vocabulary without such tokens has none, and nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokenspeed.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class FillFormat:
    """The tokens in front of the text before, of the text after, and of the answer."""

    before: str
    after: str
    middle: str | None
    after_first: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        return (self.before, self.after, *(() if self.middle is None else (self.middle,)))


FORMATS: Final = (
    FillFormat("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    FillFormat("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    FillFormat("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    FillFormat("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    FillFormat("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", after_first=True),  # Seed-Coder
    FillFormat("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    FillFormat("[PREFIX]", "[SUFFIX]", None, after_first=True),  # Codestral
)
_ENDS: Final = (
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<fim_pad>", "<file_sep>", "▁<EOT>",
)  # fmt: skip
"""Tokens that models say after what they filled in."""


@dataclass(frozen=True, slots=True)
class Fill:
    """How one vocabulary is asked to fill in."""

    format: FillFormat
    ids: tuple[int, ...]  # of the format's tokens
    stop_ids: tuple[int, ...]
    """Ids that end such an answer, beside the model's own."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Fill | None:
        """The first format whose tokens the vocabulary has; None if there is none."""
        for form in FORMATS:
            ids = tuple(i for i in map(tokenizer.token_id, form.tokens) if i is not None)
            if len(ids) == len(form.tokens):
                ends = (i for i in map(tokenizer.token_id, _ENDS) if i is not None)
                return cls(form, ids, (*ids, *ends))
        return None

    def prompt(self, before: list[int], after: list[int]) -> list[int]:
        """The ids that ask for what stands between two encoded texts."""
        opens_before, opens_after, *middle = self.ids
        one, other = [opens_before, *before], [opens_after, *after]
        return [*(other + one if self.format.after_first else one + other), *middle]
