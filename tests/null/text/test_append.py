# SPDX-License-Identifier: MIT
"""The template lint: what it approves holds, and what breaks an approval is found."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from tokenspeed.engine.source import BUNDLED
from tokenspeed.text.append import Appending, Shape
from tokenspeed.text.chat_template import ChatTemplate

TRUE_TEMPLATES = Path(__file__).parents[4] / "shared" / "data" / "chat-templates"
OPEN = "{% if add_generation_prompt %}<|a|>{% endif %}"
EACH = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def lint(source: str, **variables: object) -> Appending:
    template = ChatTemplate({"default": source}, {"bos_token": "<s>"}, now=lambda: datetime(2026, 1, 2))
    return Appending(template, dict(variables))


def test_appending_templates_are_approved_and_used():
    assert lint(EACH + OPEN).refused == []
    assert lint((BUNDLED / "chat_template.jinja").read_text()).refused == []
    linted = lint("<s>" + EACH + OPEN)
    shape = Shape(system=True, tools=False, reasoning=False, user=True)
    new = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    assert linted.opening(tools=False, role="user") == "<|a|>"
    assert linted.added(shape, "user", new) == "<|assistant|>x<|user|>y<|a|>"


def test_forgotten_reasoning_is_refused_only_when_the_user_speaks(forgetful):
    refused = lint(forgetful).refused
    assert refused
    assert all(shape.reasoning and shape.user for shape in refused)
    assert {shape.tools for shape in refused} == {True, False}


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | length }}" + EACH + OPEN,  # a count at the head
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}" + OPEN,  # numbered throughout
        EACH
        + "{{ tools | tojson if tools else '' }}{{ messages[0].content }}"
        + OPEN,  # said again at the end
        "{% for m in messages %}{{ m.content }}{{ '!' if loop.last else '~' }}{% endfor %}"
        + OPEN,  # the last is other
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}" + OPEN,
    ],
)
def test_templates_that_rewrite_are_refused_everywhere(source):
    linted = lint(source)
    assert linted.verdicts
    assert len(linted.refused) == len(linted.verdicts)


def test_tools_said_after_the_last_user_message_are_refused():
    source = (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "{% if tools and loop.index0 == ns.last %}{{ tools | tojson }}{% endif %}<|{{ m.role }}|>{{ m.content }}"
        "{% endfor %}" + OPEN
    )
    assert all(shape.tools and shape.user for shape in lint(source).refused)
    assert lint(source).refused


def test_what_one_tool_result_cannot_say_alone_is_refused():
    shape = Shape(system=False, tools=False, reasoning=False, user=False)
    result = [{"role": "tool", "content": "x"}]
    assert lint(EACH + OPEN).added(shape, "tool", result) is None
    system = [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]
    assert lint(EACH + OPEN).added(shape, "user", system) is None
    assert lint(EACH + OPEN).added(shape, "user", []) is None


def test_words_and_clock_are_read_from_the_source():
    def facts(source: str) -> tuple[set[str], tuple[str, ...] | None]:
        template = ChatTemplate({"default": source}, {})
        return set(template.watched), template.clock

    assert facts("{% if '</think>' in messages[0].content %}{% endif %}")[0] == {"</think>"}
    assert facts("{{ messages[0].content.startswith('/no') }}")[0] == {"/no"}
    assert facts("{% if 'tool_calls' in messages[0] %}{% endif %}")[0] == set()
    assert facts("{{ strftime_now('%d %b') }}")[1] == ("%d %b",)
    assert facts("{% set p = '%S' %}{{ strftime_now(p) }}")[1] is None
    assert facts('{% if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}')[1] == ("%Y",)
    assert len(lint("{% set p = '%S' %}{{ strftime_now(p) }}" + EACH + OPEN).refused) == 8


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("Qwen-Qwen3-0.6B", "reasoning user"),
        ("Qwen3-Coder", None),
        ("GLM-4.6", "reasoning user"),
        ("MiniMax-M2", "reasoning user"),
        ("deepseek-ai-DeepSeek-V3.1", None),
        ("deepseek-ai-DeepSeek-V3.2", None),
        ("meta-llama-Llama-3.1-8B-Instruct", None),
        ("smg_kimi_k25_chat_template", "reasoning user"),
        ("openai-gpt-oss-120b", "user"),
        ("Qwen3.5-4B", "user"),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", ""),
        ("Kimi-K2-Instruct", ""),
    ],
)
def test_verdicts_on_true_templates(name, refused):
    """Where they do not only append: nowhere (None), everywhere (""), or where all the named things hold."""
    path = TRUE_TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("the real templates are not at hand")
    linted = lint(path.read_text())
    wanted = [] if refused is None else [
        shape for shape in linted.verdicts if all(getattr(shape, word) for word in refused.split())
    ]  # fmt: skip
    assert linted.refused == wanted
