# SPDX-License-Identifier: MIT
"""Model directories of the tests, each made or loaded once: a small one, the bundled one, the true Qwen vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from tokenspeed.engine.source import BUNDLED
from tokenspeed.text.plane import TextPlane
from tokenspeed.text.tokenizer import Tokenizer

TEMPLATE = (
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

FORGETFUL = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{%- if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{%- for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.reasoning_content and loop.index0 > ns.last %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{- (m.content or '').split('</think>')[-1] }}"
    "{%- for c in m.tool_calls or [] %}"
    "{{ '\n<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{- '<|im_end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat; héllo wörld 你好 " * 4], trainer)
    tokenizer.add_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<s>")])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in ("<think>", "</think>", "<a b>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "eos_token_id": [7, 8]}'
    )
    return directory


SHARED = Path(__file__).parents[4] / "shared" / "data"


def qwen_directory(directory: Path, template: str) -> Path:
    """A model directory with the true Qwen vocabulary; skips where that is not at hand."""
    ranks = SHARED / "tokenizers" / "qwen.tiktoken"
    if not ranks.is_file():
        pytest.skip("the Qwen vocabulary is not at hand")
    shutil.copy(ranks, directory / "qwen.tiktoken")
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (directory / "chat_template.jinja").write_text(template)
    return directory


@pytest.fixture(scope="session")
def forgetful() -> str:
    """A template in the manner of Qwen3: reasoning is kept only after the user's last message."""
    return FORGETFUL


@pytest.fixture(scope="session")
def bundled_plane() -> TextPlane:
    return TextPlane.load(BUNDLED)


@pytest.fixture(scope="session")
def qwen_plane(tmp_path_factory: pytest.TempPathFactory) -> TextPlane:
    """The Qwen vocabulary with a template that forgets reasoning once the user speaks again."""
    return TextPlane.load(qwen_directory(tmp_path_factory.mktemp("qwen"), FORGETFUL))


@pytest.fixture(params=["bundled", "qwen"])
def plane(request: pytest.FixtureRequest) -> TextPlane:
    return request.getfixturevalue(f"{request.param}_plane")


@pytest.fixture
def vocabulary(plane: TextPlane) -> Tokenizer:
    return plane.tokenizer


@pytest.fixture(params=[1, pytest.param(100, marks=pytest.mark.slow)])
def rounds(request: pytest.FixtureRequest) -> int:
    """How often a random test is repeated: a thousand times, or a hundred thousand."""
    return 1000 * request.param
