# SPDX-License-Identifier: MIT
"""The bundled chat template: its exact text, and the law that a longer history only appends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

MODEL = Path(__file__).parents[3] / "tokenspeed" / "bundled" / "tokenspeed-demo"
GENERATION_PROMPT = "<|im_start|>assistant\n"

TOOL = {
    "type": "function",
    "function": {"name": "read_file", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "c0", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "a.py"}'}}
SESSION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Read "}, {"type": "text", "text": "a.py."}]},
    {"role": "assistant", "content": "Reading.", "reasoning_content": "A file.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "c0", "content": "x = 1\n"},
    {"role": "tool", "tool_call_id": "c0", "content": ""},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c0", "content": "x = 2"},
    {"role": "assistant", "content": " It is naïve: <x>. \n"},
    {"role": "user", "content": "Thanks."},
]


def render(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, prompt: bool = False
) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals["raise_exception"] = refuse
    template = environment.from_string((MODEL / "chat_template.jinja").read_text())
    return template.render(messages=messages, tools=tools, add_generation_prompt=prompt)


def test_a_turn_with_reasoning_tools_and_results_renders_to_the_golden_text() -> None:
    assert render(SESSION[:4], [TOOL], prompt=True) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\n"
        "Functions that you may call, one JSON schema a line:\n<tools>\n"
        f"{json.dumps(TOOL)}\n</tools>\n\nTo call one, write its name and arguments as JSON:\n"
        '<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nRead a.py.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nA file.\n</think>\n\nReading.\n"
        '<tool_call>\n{"name": "read_file", "arguments": {"path": "a.py"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "read_file", "arguments": {"path": "a.py"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nx = 1\n\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_every_longer_history_starts_with_the_shorter_one(tools: list[dict[str, Any]] | None) -> None:
    for end in range(1, len(SESSION)):
        shorter, longer = render(SESSION[:end], tools), render(SESSION[: end + 1], tools)
        assert longer.startswith(shorter)
        if SESSION[end]["role"] == "assistant":
            assert longer.startswith(shorter + GENERATION_PROMPT)
            assert longer.endswith("<|im_end|>\n")


def test_an_answer_is_followed_by_exactly_its_end_marker() -> None:
    answer = "  spaces and \n\n newlines survive \n"
    history = [SESSION[1]]
    expected = render(history, prompt=True) + answer + "<|im_end|>\n"
    assert render([*history, {"role": "assistant", "content": answer}]) == expected


def test_arguments_as_an_object_and_as_json_text_render_alike() -> None:
    as_object = {"function": {"name": "read_file", "arguments": {"path": "a.py"}}}
    texts = [
        render([{"role": "assistant", "content": "", "tool_calls": [call]}]) for call in (CALL, as_object)
    ]
    assert texts[0] == texts[1]


def test_tools_without_a_system_message_make_one() -> None:
    assert render([SESSION[1]], [TOOL]).startswith("<|im_start|>system\n# Tools\n")
    assert render([SESSION[1]]).startswith("<|im_start|>user\n")


def test_an_unknown_role_is_refused_by_name() -> None:
    with pytest.raises(TemplateError, match="unknown role narrator"):
        render([{"role": "narrator", "content": "x"}])


def test_the_tokenizer_is_lossless_and_gives_each_marker_one_id() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    config = json.loads((MODEL / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 8192
    assert tokenizer.token_to_id("<|im_end|>") == config["eos_token_id"]
    assert tokenizer.token_to_id("<|endoftext|>") == config["pad_token_id"]
    control = "<|endoftext|><|im_start|><|im_end|>"
    markers = control + "<tool_call></tool_call><tool_response></tool_response><think></think>"
    assert tokenizer.encode(markers).ids == list(range(8183, 8192))
    text = render(SESSION, [TOOL]) + "\t\x00 é é 你好 🙂\r\n  def f(x):\n        return x"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
