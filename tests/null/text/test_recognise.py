# SPDX-License-Identifier: MIT
"""Which dialect a template speaks; and that what a template writes into a history is read back as it was."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from answers import parse, written
from templates import TEMPLATES

from tokenspeed.base.errors import RequestError, SetupError
from tokenspeed.text.chat_template import ChatTemplate
from tokenspeed.text.events import ArgumentsDelta, CallStart, Content, Reasoning
from tokenspeed.text.plane import TextPlane
from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.recognise import choose
from tokenspeed.text.tools.render import Call
from tokenspeed.text.tools.schema import ArgumentTypes

TRUE_TEMPLATES = Path(__file__).parents[4] / "shared" / "data" / "chat-templates"
TRUE_DIALECTS = {
    "GLM-4.6": ("glm45", "think"),
    "GLM-4.7-Flash": ("glm47", "think"),
    "Kimi-K2-Instruct": ("kimi_k2", None),
    "Kimi-K2-Thinking": ("kimi_k2", "think_exact"),
    "Kimi-K3": ("plain", None),
    "MiniMax-M2": ("minimax_m2", "minimax_m2"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", None),
    "Qwen-Qwen3-0.6B": ("hermes", "think"),
    "Qwen3-Coder": ("qwen3_coder", None),
    "Qwen3.5-4B": ("qwen3_coder", "think"),
    "deepseek-ai-DeepSeek-V3.1": ("deepseek_v31", "think_exact"),
    "deepseek-ai-DeepSeek-V3.2": ("deepseek_v32", "think_exact"),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3", None),
    "openai-gpt-oss-120b": ("harmony", None),
    "smg_kimi_k25_chat_template": ("kimi_k2", "think_exact"),
}
TOOL = {
    "type": "function",
    "function": {
        "name": "edit",
        "description": "Change a file.",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "Its path."},
                "text": {"type": "string", "description": "New text."},
                "line": {"type": "integer", "description": "Where."},
                "all": {"type": "boolean", "description": "All of it."},
                "spans": {"type": "array", "items": {"type": "integer"}, "description": "Spans."},
            },
            "required": ["path"],
        },
    },
}
ARGUMENTS = {
    "path": "5",
    "text": 'x = {"y": 1}\n\tif a < b:\n    é 你\n',
    "line": 3,
    "all": True,
    "spans": [1, 2],
}
RESULT = "ok: 1 line\nchanged"


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"})


def history(calls: int, call_ids: list[str]) -> list[dict[str, Any]]:
    """A turn with calls and their results; arguments as a client sends them, in JSON text."""
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False)
    written_calls = [
        {"id": call_ids[i], "type": "function", "function": {"name": "edit", "arguments": arguments}}
        for i in range(calls)
    ]
    return [
        {"role": "user", "content": "change it"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "The line first.",
            "tool_calls": written_calls,
        },
        *({"role": "tool", "content": RESULT, "tool_call_id": call_ids[i]} for i in range(calls)),
    ]


def check_history(chat: ChatTemplate, name: str, variables: dict[str, Any]) -> None:
    """Tools, calls and results are in what a template writes, and the calls are read back."""
    dialect = choose(chat, {}).dialect
    calls = 2 if dialect.calls is not None and dialect.calls.parallel else 1
    ids = [
        f"functions.edit:{i}" if name.startswith(("kimi", "smg_kimi", "Kimi")) else f"abcdefg0{i}"
        for i in range(calls)
    ]
    messages = history(calls, ids)
    prompt = chat.render(messages[:1], tools=[TOOL], variables=variables)
    turn = chat.render(messages[:2], tools=[TOOL], variables=variables, add_generation_prompt=False)
    whole = chat.render(messages, tools=[TOOL], variables=variables)
    assert "Change a file." in prompt or not chat.takes_tools
    shared = next(
        (at for at, pair in enumerate(zip(prompt, turn, strict=False)) if pair[0] != pair[1]), len(prompt)
    )
    types = ArgumentTypes([TOOL])
    events = parse(dialect, turn[shared:], types)
    starts = [event for event in events if isinstance(event, CallStart)]
    assert [start.name for start in starts] == ["edit"] * calls
    for start in starts:
        text = "".join(e.text for e in events if isinstance(e, ArgumentsDelta) and e.index == start.index)
        assert text == written(Call("edit", ARGUMENTS))
        assert start.id in (None, ids[start.index])
    results = (RESULT, json.dumps(RESULT))
    assert max(whole.count(result) for result in results) == calls
    assert whole.index(RESULT.partition("\n")[0]) > whole.index("change it")


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_recognised_by_the_call_it_writes(name):
    choice = choose(template(TEMPLATES[name]), {})
    assert choice.dialect.name == name
    assert choice.calls_reason == "the chat template writes a call so"
    expected = FAMILIES[name].reasoning
    assert choice.dialect.reasoning == (expected if "<think>" in TEMPLATES[name] else None)


@pytest.mark.parametrize("name", TEMPLATES)
def test_history_with_calls_and_results_is_written_and_read_back(name):
    check_history(template(TEMPLATES[name]), name, {})


@pytest.mark.parametrize("name", TEMPLATES)
def test_answer_written_by_a_template_is_read_back(name):
    chat = template(TEMPLATES[name])
    dialect = choose(chat, {}).dialect
    answer = {"role": "assistant", "content": "Two\n\nlines", "reasoning_content": "Hm <a>\n\nyes"}
    asked = [{"role": "user", "content": "q"}]
    prompt = chat.render(asked)
    text = chat.render([*asked, answer], add_generation_prompt=False)[len(prompt) :].removesuffix(
        "[/answer]\n"
    )
    reads = dialect.reasoning is not None or dialect.channels is not None
    expected = ([Reasoning("Hm <a>\n\nyes")] if reads else []) + [Content("Two\n\nlines")]
    assert parse(dialect, text, ArgumentTypes()) == expected


@pytest.mark.skipif(not TRUE_TEMPLATES.is_dir(), reason="the true templates are not beside the repository")
@pytest.mark.parametrize("path", sorted(TRUE_TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
@pytest.mark.parametrize("thinking", [False, True])
def test_true_template_is_recognised_and_writes_histories_that_read_back(path, thinking):
    chat = template(path.read_text())
    dialect = choose(chat, {}).dialect
    assert (dialect.name, dialect.reasoning and dialect.reasoning.name) == TRUE_DIALECTS[path.stem]
    if dialect.takes_calls:
        check_history(chat, path.stem, {"enable_thinking": thinking, "thinking": thinking})


@pytest.mark.skipif(not TRUE_TEMPLATES.is_dir(), reason="the true templates are not beside the repository")
def test_true_harmony_template_keeps_reasoning_between_calls():
    chat = template((TRUE_TEMPLATES / "openai-gpt-oss-120b.jinja").read_text())
    messages = history(1, ["a"])
    messages[1]["content"] = "Now."
    text = chat.render(messages, tools=[TOOL])
    assert "<|channel|>analysis<|message|>The line first.\nNow.<|end|>" in text


def test_source_tells_where_a_template_refuses_to_write_calls():
    refuses = "{% if messages | length > 1 %}{{ raise_exception('') }}{% endif %}"
    source = refuses + "<|tool_calls_section_begin|><|tool_call_argument_begin|>"
    choice = choose(template(source), {})
    assert choice.dialect.name == "kimi_k2"
    assert "chat template holds <|tool_calls_section_begin|>" in choice.calls_reason
    assert choose(template("<tool_call>"), {}).dialect.name == "hermes"
    assert choose(template("<tool_call><function=<parameter="), {}).dialect.name == "qwen3_coder"
    assert choose(template("<tool_call><function="), {}).dialect.name == "plain"


def test_response_template_tells_before_the_source():
    config = {"response_template": {"fields": {"tool_calls": {"open": "[TOOL_CALLS]", "close": "[ARGS]"}}}}
    choice = choose(template("<tool_call>"), config)
    assert choice.dialect.name == "mistral_args"
    assert choice.calls_reason.startswith("the response_template holds [TOOL_CALLS]")


def test_operator_has_the_last_word(tmp_path, model_directory, caplog):
    chat = template(TEMPLATES["hermes"])
    choice = choose(chat, {}, tool_call_parser="kimi_k2", reasoning_parser="none")
    assert (choice.dialect.name, choice.dialect.reasoning) == ("kimi_k2", None)
    assert not choose(chat, {}, tool_call_parser="none").dialect.takes_calls
    assert choose(chat, {}, reasoning_parser="mistral").dialect.reasoning == FAMILIES["mistral"].reasoning
    for wrong in ({"tool_call_parser": "qwen"}, {"reasoning_parser": "qwen"}):
        with pytest.raises(SetupError, match=r"must be auto, none or one of"):
            choose(chat, {}, **wrong)
    (tmp_path / "tokenizer.json").write_bytes((model_directory / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["hermes"])
    with caplog.at_level(logging.INFO, logger="tokenspeed"):
        TextPlane.load(tmp_path, tool_call_parser="glm45")
    assert (
        "tool calls: glm45 (--tool-call-parser glm45); reasoning: <think> (the chat template holds"
        in caplog.text
    )


def test_unknown_ways_of_calling_are_refused_by_name(tmp_path, model_directory):
    (tmp_path / "tokenizer.json").write_bytes((model_directory / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}<call>"
    )
    with pytest.raises(RequestError, match="--tool-call-parser") as raised:
        TextPlane.load(tmp_path).prompt_of_chat([{"role": "user", "content": "x"}], tools=[TOOL])
    assert (raised.value.param, raised.value.code) == ("tools", "unsupported_by_model")
    told = TextPlane.load(tmp_path, tool_call_parser="hermes")
    assert told.prompt_of_chat([{"role": "user", "content": "x"}], tools=[TOOL]).ids


def test_tokens_that_end_an_answer_of_the_dialect_are_stop_ids(tmp_path, model_directory):
    document = json.loads((model_directory / "tokenizer.json").read_text())
    document["added_tokens"].append(document["added_tokens"][-1] | {"id": 9999, "content": "<|call|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["harmony"])
    plane = TextPlane.load(tmp_path)
    assert plane.tokenizer.token_id("<|call|>") in plane.stop_ids
