# SPDX-License-Identifier: MIT
"""Small chat templates, one a family, that write calls as the family's own do: what recognition is tested on.

Written for these tests. Each writes a user's message, an answer's reasoning, content and calls, and a tool's result.
"""

from __future__ import annotations

_HEAD = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{% if m.role != 'assistant' %}[{{ m.role }}] {{ m.content }}\n{% else %}[answer]"
)
_TAIL = "[/answer]\n{% endif %}{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
_THINK = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
_THINK_EXACT = "<think>{{ m.reasoning_content or '' }}</think>"


def _template(body: str) -> str:
    return _HEAD + body + _TAIL


def _elements(element: str) -> str:
    return (
        "{% for k, v in c.function.arguments.items() %}"
        "{% set text = v if v is string else v | tojson %}" + element + "{% endfor %}"
    )


_CALLS = "{% for c in m.tool_calls or [] %}"
_END = "{% endfor %}"
_IF = "{% if m.tool_calls %}"
_FI = "{% endif %}"

TEMPLATES = {
    "hermes": _template(
        _THINK + "{{ m.content }}" + _CALLS + "{{ '\n' if m.content or not loop.first }}<tool_call>\n"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>' + _END
    ),
    "qwen3_coder": _template(
        "{{ m.content }}" + _CALLS + "\n\n<tool_call>\n<function={{ c.function.name }}>\n"
        + _elements("<parameter={{ k }}>\n{{ text }}\n</parameter>\n")
        + "</function>\n</tool_call>" + _END
    ),
    "glm45": _template(
        _THINK + "{{ m.content }}" + _CALLS + "\n<tool_call>{{ c.function.name }}\n"
        + _elements("<arg_key>{{ k }}</arg_key>\n<arg_value>{{ text }}</arg_value>\n")
        + "</tool_call>" + _END
    ),
    "glm47": _template(
        _THINK + "{{ m.content }}" + _CALLS + "<tool_call>{{ c.function.name }}"
        + _elements("<arg_key>{{ k }}</arg_key><arg_value>{{ text }}</arg_value>")
        + "</tool_call>" + _END
    ),
    "deepseek_v3": _template(
        "{{ m.content }}" + _IF + "<｜tool▁calls▁begin｜>" + _CALLS
        + "{{ '\n' if not loop.first }}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}\n```json\n"
        "{{ c.function.arguments | tojson }}\n```<｜tool▁call▁end｜>" + _END + "<｜tool▁calls▁end｜>" + _FI
    ),
    "deepseek_v31": _template(
        _THINK_EXACT + "{{ m.content }}" + _IF + "<｜tool▁calls▁begin｜>" + _CALLS
        + "<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>"
        "{{ c.function.arguments | tojson }}<｜tool▁call▁end｜>" + _END + "<｜tool▁calls▁end｜>" + _FI
    ),
    "deepseek_v32": _template(
        "{% set d = '｜DSML｜' %}" + _THINK_EXACT + "{{ m.content }}" + _IF + "\n\n<{{ d }}function_calls>\n" + _CALLS
        + '<{{ d }}invoke name="{{ c.function.name }}">\n'
        + _elements(
            '<{{ d }}parameter name="{{ k }}" string="{{ \'true\' if v is string else \'false\' }}">'
            "{{ text }}</{{ d }}parameter>\n"
        )
        + "</{{ d }}invoke>\n" + _END + "</{{ d }}function_calls>" + _FI
    ),
    "kimi_k2": _template(
        _THINK_EXACT + "{{ m.content }}" + _IF + "<|tool_calls_section_begin|>" + _CALLS
        + "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
        "{{ c.function.arguments | tojson }}<|tool_call_end|>" + _END + "<|tool_calls_section_end|>" + _FI
    ),
    "minimax_m2": _template(
        _THINK + "{{ m.content }}" + _IF + "\n<minimax:tool_call>\n" + _CALLS
        + '<invoke name="{{ c.function.name }}">\n'
        + _elements('<parameter name="{{ k }}">{{ text }}</parameter>\n')
        + "</invoke>\n" + _END + "</minimax:tool_call>" + _FI
    ),
    "mistral": _template(
        "{{ m.content }}" + _IF + "[TOOL_CALLS] [" + _CALLS
        + "{% if c.id | length != 9 %}{{ raise_exception('an id has nine letters') }}{% endif %}"
        '{{ ", " if not loop.first }}{"name": "{{ c.function.name }}", '
        '"arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}' + _END + "]" + _FI
    ),
    "mistral_args": _template(
        "{{ m.content }}" + _CALLS
        + "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}" + _END
    ),
    "llama3": _template(
        "{{ m.content }}" + _CALLS
        + "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}"
        '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}' + _END
    ),
    "harmony": "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}"
    "{% if m.role != 'assistant' %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% else %}"
    "{% if m.reasoning_content %}<|start|>assistant<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>"
    "{% endif %}"
    "{% if m.content %}<|start|>assistant<|channel|>{{ 'commentary' if m.tool_calls else 'final' }}<|message|>"
    "{{ m.content }}<|end|>{% endif %}"
    "{% for c in m.tool_calls or [] %}<|start|>assistant to=functions.{{ c.function.name }}<|channel|>commentary json"
    "<|message|>{{ c.function.arguments | tojson }}<|call|>{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
}  # fmt: skip
