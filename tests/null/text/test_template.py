# SPDX-License-Identifier: MIT
"""Chat templates: rendered as the reference renders them, and harmless whatever they hold."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import jinja2.sandbox
import pytest

from tokenspeed.base.errors import RequestError, SetupError
from tokenspeed.text import sandbox
from tokenspeed.text.chat_template import ChatTemplate

TRUE_TEMPLATES = Path(__file__).parents[4] / "shared" / "data" / "chat-templates"
TOOL = {
    "type": "function",
    "function": {"name": "read", "description": "Läs <file>", "parameters": {"type": "object"}},
}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "look at a.py"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "read", "arguments": {"path": "a.py"}}}],
    },
    {"role": "tool", "content": "x = 1"},
    {"role": "assistant", "content": "It sets x."},
    {"role": "user", "content": "thanks 你"},
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, now=lambda: datetime(2026, 1, 2))


def rendered(source: str, **variables: object) -> str:
    return template(source).render([{"role": "user", "content": "hi"}], variables=variables)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'k': 'é<'} | tojson }}", '{"k": "é<"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ strftime_now('%Y-%m-%d') }}", "2026-01-02"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hi"),
        ("{{ missing is defined }}{{ flag }}", "False7"),
        ("{{ 'a' ~ 1 ~ 'b' }}{{ 'ab' * 2 }}{{ 7 % 3 }}", "a1babab1"),
    ],
)
def test_template_dialect(source, expected):
    assert rendered(source, flag=7) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% set r = range(90000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 1000000000 }}",
        "{% set ns = namespace(x=9) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set m = messages %}{{ m.pop() }}",
        "{% set l = [messages] %}{{ l[0].append(1) }}",
        "{% set l = [] %}{{ l.extend(messages) }}",
        "{% set l = [] %}{{ l.clear() }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_hostile_or_failing_template_ends_as_a_request_error(source, monkeypatch):
    monkeypatch.setattr(sandbox, "CPU_SECONDS_MAX", 0.05)
    with pytest.raises(RequestError, match="chat template"):
        rendered(source)


def test_template_may_change_a_list_of_its_own():
    source = "{% set ns = namespace(l=[]) %}{% set _ = ns.l.append('a') %}{% set _ = ns.l.append('b') %}"
    assert rendered(source + "{{ ns.l.pop(0) ~ ns.l }}") == "a['b']"


def test_template_that_does_not_compile_is_a_setup_error():
    with pytest.raises(SetupError, match="does not compile"):
        template("{% for %}")
    with pytest.raises(SetupError, match="does not compile"):
        template("x" * (sandbox.SOURCE_CHARACTERS_MAX + 1))


def test_content_parts_reach_a_template_as_it_takes_them():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    strings = template("{% for m in messages %}{{ m.content }}{% endfor %}")
    lists = template(
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert not strings.takes_parts
    assert strings.render(parts) == "a\nb"
    assert lists.takes_parts
    assert lists.render(parts) == "ab"


def test_arguments_that_are_no_json_object_are_rendered_raw():
    call = {"function": {"name": "f", "arguments": '{"a": '}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    text = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert template(text).render(messages) == '{"a": '
    keyed = text.replace(
        "{{ c.function.arguments }}", "{% for k, v in c.function.arguments.items() %}{{ k ~ v }}{% endfor %}"
    )
    assert template(keyed).render(messages) == 'arguments{"a": '


def test_reasoning_reaches_a_template_under_the_name_it_reads():
    call = {"function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": "b", "reasoning_content": "a", "tool_calls": [call]}
    asked = {"role": "user", "content": "q"}
    text = "{% for m in messages %}{{ refuse }}{{ m.thinking }}|{{ m.content }}{% endfor %}"
    assert template(text.replace("{{ refuse }}", "")).render([asked, answer]) == "|qa|b"
    refuse = "{% if m.thinking and m.content %}{{ raise_exception('both') }}{% endif %}"
    assert template(text.replace("{{ refuse }}", refuse)).render([asked, answer]) == "|qa\nb|"
    other = text.replace("{{ refuse }}", "").replace("m.thinking", "m.reasoning_content")
    assert template(other).render([asked, answer]) == "|qa|b"


def test_named_templates_are_chosen_by_tools(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].function.name }}")
    loaded = ChatTemplate.load(tmp_path, {})
    assert loaded is not None
    assert loaded.takes_tools
    assert loaded.render([]) == "plain"
    assert loaded.render([], tools=[TOOL]) == "read"


def test_variables_cannot_replace_what_the_request_says():
    with pytest.raises(RequestError, match="messages, tools"):
        rendered("x", tools=[], messages=[])


def test_model_without_a_template_has_none(tmp_path):
    assert ChatTemplate.load(tmp_path, {}) is None


@pytest.mark.skipif(not TRUE_TEMPLATES.is_dir(), reason="the true templates are not beside the repository")
@pytest.mark.parametrize("path", sorted(TRUE_TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
@pytest.mark.parametrize("with_tools", [False, True])
def test_true_template_renders_as_the_reference_does(path, with_tools, monkeypatch):
    from transformers.utils import chat_template_utils as reference

    if ".append(" in path.read_text():
        # Refused by the reference, which lets no list grow; what is meant is clear.
        monkeypatch.setattr(reference, "ImmutableSandboxedEnvironment", jinja2.sandbox.SandboxedEnvironment)
        reference._compile_jinja_template.cache_clear()
    ours = ChatTemplate.load(path.parent / "none", {"chat_template": path.read_text(), "bos_token": "<s>"})
    assert ours is not None
    history = [m | {"content": None} if m.get("tool_calls") and ours.takes_null else m for m in HISTORY]
    tools = [TOOL] if with_tools else None
    compiled = reference._compile_jinja_template(path.read_text())
    try:
        expected = compiled.render(
            messages=history, tools=tools, add_generation_prompt=True, bos_token="<s>", enable_thinking=True
        )
    except Exception as error:  # noqa: BLE001  (whatever the reference stumbles over, ours must refuse)
        expected = error
    sent = [dict(m) for m in history]
    for message in sent:
        for call in message.get("tool_calls", []):
            message["tool_calls"] = [
                call | {"function": call["function"] | {"arguments": json.dumps({"path": "a.py"})}}
            ]
    if isinstance(expected, Exception):
        with pytest.raises(RequestError):
            ours.render(sent, tools=tools, variables={"enable_thinking": True})
    else:
        assert ours.render(sent, tools=tools, variables={"enable_thinking": True}) == expected


SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system first') }}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
HOISTS = (
    "{% for m in messages if m.role == 'system' %}{{ m.content }}\n{% endfor %}"
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize("source", [SYSTEM_FIRST, HOISTS])
def test_system_messages_stand_where_the_template_takes_them(source):
    template = ChatTemplate({"default": source}, {})
    system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
    late = [{"type": "text", "text": "T"}]
    text = template.render([system, system, user, {"role": "system", "content": late}])
    assert text.endswith("[user] U\n[user] T\n")
    assert text.count("S") == 2
    assert template.placed([system], later=True) == [system | {"role": "user"}]
