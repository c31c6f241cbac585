# SPDX-License-Identifier: MIT
"""Masked rows on a GPU: sentences of their grammar in every mode, and neighbours that do not notice."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

PATTERN = r"[a-f]{3}-[0-9]{4}(;[a-z]{1,5}){2,3}\."
GRAMMAR = f"start: /{PATTERN}/"
STOP = 2
MODES: dict[str, dict[str, Any]] = {
    "graphs": {},
    "eager": {"enforce_eager": True},
    "graphs-no-overlap": {"overlap": "off"},
    "references": {"kernel": ("sampling.*=ref",)},
}
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 7, "logprobs": 3},
    {"temperature": 1.0, "presence": 0.4, "frequency": 0.2, "tokens_min": 20},
    {"repetition": 1.2, "logit_bias": {101: 3.0}},
]


@pytest.mark.parametrize("mode", MODES)
def test_masked_rows_are_sentences_and_others_are_as_ever(
    checkpoint_of: Callable[[str], Any], world: Any, mode: str
) -> None:
    checkpoint = checkpoint_of("llama")
    core = world(checkpoint.directory, **MODES[mode])
    free = [core.submit(prompt) for prompt in checkpoint.prompts[:4]]
    held = [
        core.submit(checkpoint.prompts[i % 5], GRAMMAR, stop_ids=(STOP,), **kind)
        for i, kind in enumerate(KINDS)
    ]
    core.finish()
    assert [core.answers[i].ids for i in free] == checkpoint.expected[:4]
    for i in held:
        answer = core.answers[i]
        text = bytes(answer.ids).decode()
        assert answer.error is None
        assert answer.finish == "stop", text
        assert re.fullmatch(PATTERN, text[:-1]), text
        assert answer.ids[-1] == STOP


def test_every_mode_says_the_same(checkpoint_of: Callable[[str], Any], world: Any) -> None:
    checkpoint = checkpoint_of("llama")

    def told(**options: Any) -> list[list[int]]:
        core = world(checkpoint.directory, **options)
        held = [
            core.submit(checkpoint.prompts[i], GRAMMAR, stop_ids=(STOP,), **kind)
            for i, kind in enumerate(KINDS)
        ]
        core.finish()
        return [core.answers[i].ids for i in held]

    first = told()
    assert all(told(**MODES[mode]) == first for mode in ("eager", "graphs-no-overlap"))
