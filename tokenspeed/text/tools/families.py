# SPDX-License-Identifier: MIT
"""The dialects that are known, as data: one entry a family. A new family is a new entry, and its transcripts.

An entry is found by what a checkpoint's template writes (`recognise`), never by a model's name. Order matters
only where a template's source is all there is to go by: the more particular comes first.
"""

from __future__ import annotations

from typing import Final

from tokenspeed.text.tools.spec import (
    CallFormat,
    Channels,
    Dialect,
    Elements,
    Envelope,
    JsonObject,
    ReasoningFormat,
    Section,
)

THINK: Final = ReasoningFormat()
"""Of templates that trim what they are given (Qwen, GLM, DeepSeek-R1), and of those nobody knows."""
THINK_EXACT: Final = ReasoningFormat("think_exact", newlines_inside=0, newlines_after=0)
"""Of templates that write reasoning between bare markers (Kimi, DeepSeek from V3.1)."""
THINK_INTERLEAVED: Final = ReasoningFormat("minimax_m2", newlines_inside=1, newlines_after=2, repeats=True)
THINK_BRACKETS: Final = ReasoningFormat("mistral", "[THINK]", "[/THINK]", newlines_inside=0, newlines_after=0)
REASONING: Final = {form.name: form for form in (THINK, THINK_EXACT, THINK_INTERLEAVED, THINK_BRACKETS)}

HERMES: Final = Dialect(
    "hermes",
    THINK,
    CallFormat(
        open="<tool_call>\n", arguments=Envelope(), close="\n</tool_call>", joint="\n", newlines_before=1
    ),
    signs=("<tool_call>",),
    unless=("<function=", "<arg_key>"),
)
QWEN3_CODER: Final = Dialect(
    "qwen3_coder",
    THINK,
    CallFormat(
        section=Section("<tool_call>\n", "\n</tool_call>", each=True, omitted="tolerated"),
        open="<function=",
        name_close=">\n",
        arguments=Elements(
            open="<parameter=", key_close=">", close="</parameter>\n", padding="\n", python_words=True
        ),
        close="</function>",
        joint="\n",
        newlines_before=2,
        ends_reasoning=True,
    ),
    signs=("<tool_call>", "<function=", "<parameter="),
)
GLM_45: Final = Dialect(
    "glm45",
    THINK,
    CallFormat(
        open="<tool_call>",
        name_close="\n",
        arguments=Elements(
            open="<arg_key>", key_close="</arg_key>\n", value_open="<arg_value>", close="</arg_value>\n"
        ),
        close="</tool_call>",
        joint="\n",
        newlines_before=1,
    ),
    signs=("<tool_call>", "<arg_key>", "<arg_value>"),
)
GLM_47: Final = Dialect(
    "glm47",
    THINK,
    CallFormat(
        open="<tool_call>",
        arguments=Elements(
            open="<arg_key>", key_close="</arg_key>", value_open="<arg_value>", close="</arg_value>"
        ),
        close="</tool_call>",
    ),
    signs=("<tool_call>", "<arg_key>", "</arg_key><arg_value>"),
)
DEEPSEEK_V3: Final = Dialect(
    "deepseek_v3",
    THINK,
    CallFormat(
        section=Section("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", omitted="tolerated"),
        open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        name_close="\n```json\n",
        arguments=JsonObject(),
        close="\n```<｜tool▁call▁end｜>",
        joint="\n",
        ends_reasoning=True,
    ),
    signs=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "```json"),
)
DEEPSEEK_V31: Final = Dialect(
    "deepseek_v31",
    THINK_EXACT,
    CallFormat(
        section=Section("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", omitted="tolerated"),
        open="<｜tool▁call▁begin｜>",
        name_close="<｜tool▁sep｜>",
        arguments=JsonObject(),
        close="<｜tool▁call▁end｜>",
        ends_reasoning=True,
    ),
    signs=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
)
DEEPSEEK_V32: Final = Dialect(
    "deepseek_v32",
    THINK_EXACT,
    CallFormat(
        section=Section("<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"),
        open='<｜DSML｜invoke name="',
        name_close='">\n',
        arguments=Elements(
            open='<｜DSML｜parameter name="',
            key_close='"',
            value_open=' string="true">',
            json_open=' string="false">',
            close="</｜DSML｜parameter>\n",
        ),
        close="</｜DSML｜invoke>\n",
        newlines_before=2,
        ends_reasoning=True,
    ),
    signs=("｜DSML｜",),
)
KIMI_K2: Final = Dialect(
    "kimi_k2",
    THINK_EXACT,
    CallFormat(
        section=Section("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", omitted="tolerated"),
        open="<|tool_call_begin|>",
        name_close="<|tool_call_argument_begin|>",
        arguments=JsonObject(),
        close="<|tool_call_end|>",
        ids="functions",
        ends_reasoning=True,
    ),
    signs=("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
)
MINIMAX_M2: Final = Dialect(
    "minimax_m2",
    THINK_INTERLEAVED,
    CallFormat(
        section=Section("<minimax:tool_call>\n", "</minimax:tool_call>"),
        open='<invoke name="',
        name_close='">\n',
        arguments=Elements(open='<parameter name="', key_close='">', close="</parameter>\n"),
        close="</invoke>\n",
        newlines_before=1,
        ends_reasoning=True,
    ),
    signs=("<minimax:tool_call>", "<invoke name="),
)
MISTRAL_ARGS: Final = Dialect(
    "mistral_args",
    THINK_BRACKETS,
    CallFormat(
        open="[TOOL_CALLS]", name_close="[ARGS]", arguments=JsonObject(), ids="call_id", ends_reasoning=True
    ),
    signs=("[TOOL_CALLS]", "[ARGS]"),
)
MISTRAL: Final = Dialect(
    "mistral",
    THINK_BRACKETS,
    CallFormat(
        section=Section("[TOOL_CALLS] [", "]"),
        open="",
        arguments=Envelope(),
        joint=", ",
        ids="member",
        ends_reasoning=True,
    ),
    signs=("[TOOL_CALLS]",),
)
LLAMA_3: Final = Dialect(
    "llama3",
    None,
    CallFormat(
        section=Section("<|python_tag|>", "", omitted="usual"),
        open="",
        arguments=Envelope(arguments_key="parameters"),
        joint="; ",
        parallel=False,
    ),
    signs=('{"name": ', '"parameters": ', "<|python_tag|>"),
)
HARMONY: Final = Dialect(
    "harmony",
    channels=Channels(),
    signs=("<|channel|>", "<|message|>", "<|start|>", "functions"),
    stops=("<|call|>", "<|return|>"),
)

FAMILIES: Final = {
    dialect.name: dialect
    for dialect in (
        HARMONY, DEEPSEEK_V32, DEEPSEEK_V3, DEEPSEEK_V31, KIMI_K2, MINIMAX_M2, QWEN3_CODER, GLM_47, GLM_45,
        MISTRAL_ARGS, MISTRAL, LLAMA_3, HERMES,
    )
}  # fmt: skip
