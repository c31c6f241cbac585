# SPDX-License-Identifier: MIT
"""From what a request wants of its answer's form to one grammar of whole answers. Pure.

In: a dialect and a `Wanted`, in no API's spelling. Out: a `Constraint`, or None where anything goes. Priced
before it is made; `RequestError` names the field. Whether the grammar compiles is `matcher.check`'s question.

    answer = [reasoning] ( calls | text of a format )                a call is required, or a format is given
    answer = (free text, call)* free text                            calls are free, and some tool is strict

The reasoning is free. It ends as the dialect's parser says: at its closing marker, or at a call where that is a
call (`ends_reasoning`), so nothing a model thinks is taken for its answer. A format never forbids a call: where
tools are on offer both are sentences. A required call is the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from tokenspeed.base.constraint import Constraint
from tokenspeed.base.errors import RequestError
from tokenspeed.text.grammar import limits
from tokenspeed.text.grammar.dialect import Calls, ToolOffer, anchored, calls_of, channel_call
from tokenspeed.text.grammar.lark import (
    Rules,
    either,
    escaped,
    json_value,
    literal,
    upto,
    with_options,
    without,
    words,
)
from tokenspeed.text.tools.spec import Channels, Dialect, ReasoningFormat

_NEWLINES_MAX: Final = 2  # after reasoning, as templates write at most
_USER: Final = "user"


@dataclass(frozen=True, slots=True)
class AnyJson:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON of a schema; strict refuses keywords that no grammar can say, else they are passed over."""

    schema: dict[str, Any]
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that a regular expression matches as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Text of a grammar in the Lark dialect of llguidance, from its rule `start`."""

    lark: str


Format: TypeAlias = AnyJson | JsonSchema | Regex | Choice | Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request says of the form of its answer."""

    format: Format | None = None
    format_param: str = "response_format"
    """The field that said so, for errors; likewise `choice_param`."""
    tools: Sequence[ToolOffer] = ()
    """Tools that may be called: none where the request's choice is none."""
    choice: Literal["auto", "required"] = "auto"
    named: str | None = None
    """The one tool that must be called."""
    choice_param: str = "tool_choice"
    parallel: bool = True
    """An answer may hold several calls, where the dialect has them."""
    in_reasoning: bool = False
    """The prompt has opened the reasoning."""

    @property
    def free(self) -> bool:
        """Anything goes."""
        forced = self.choice == "required" or self.named is not None
        return not forced and self.format is None and not any(tool.strict for tool in self.tools)


def constraint_for(dialect: Dialect, wanted: Wanted) -> Constraint | None:
    """The grammar of answers to a request; None where it wants no form.

    Raises `RequestError` for what is too large, what the dialect cannot write, and a choice that cannot be.
    """
    if wanted.free:
        return None
    forced = wanted.choice == "required" or wanted.named is not None
    tools = _chosen(wanted, forced=forced)
    for tool in tools:
        if tool.schema is not None:
            limits.check_schema(tool.param, tool.schema)
    if tools and not dialect.takes_calls:
        raise _refused(wanted.choice_param, "this model writes tool calls in no dialect known here")
    writer = _Answer(dialect, wanted, tools, several=wanted.parallel and wanted.named is None)
    grammar = writer.grammar(forced=forced)
    param = wanted.format_param if wanted.format is not None and not forced else wanted.choice_param
    if not forced and wanted.format is None:
        param = "tools"
    limits.check_size(param, "a grammar of bytes", len(grammar.encode()), limits.GRAMMAR_BYTES_MAX)
    return Constraint(grammar, param)


class _Answer:
    """Writes the grammar of one request's answers."""

    def __init__(
        self, dialect: Dialect, wanted: Wanted, tools: Sequence[ToolOffer], *, several: bool
    ) -> None:
        self._rules = Rules()
        self._dialect = dialect
        self._wanted = wanted
        self._tools = tools
        self._several = several
        self._user: str | None = None  # a grammar of the request's own

    def grammar(self, *, forced: bool) -> str:
        form = self._format() if self._wanted.format is not None and not forced else None
        if self._dialect.channels is not None:
            start = self._channels(self._dialect.channels, form, forced=forced)
        else:
            start = self._marked(form, forced=forced)
        lark = self._rules.text(start)
        if self._user is None:
            return lark
        user = {"name": _USER, "lark_grammar": with_options(self._user)}
        return json.dumps({"grammars": [{"lark_grammar": lark}, user]}, ensure_ascii=False)

    # -- between markers ----------------------------------------------------------------------------------

    def _marked(self, form: str | None, *, forced: bool) -> str:
        calls_form = self._dialect.calls
        calls = None
        if self._tools and calls_form is not None:
            calls = calls_of(self._rules, calls_form, self._tools, several=self._several)
        if calls is not None and form is None and not forced:
            return self._free(calls)
        body = self._rules.add("answer", either(*filter(None, (calls and calls.whole, form))))
        reasoning = self._dialect.reasoning
        if reasoning is None:
            return body
        # A call that ends the reasoning is no less the answer than one behind it.
        ends = () if calls_form is None or calls is None or not calls_form.ends_reasoning else calls.entries
        thought = either(
            words(self._until(reasoning.close), self._newlines(reasoning), body),
            *(words(self._until(entry.marker), entry.rest) for entry in ends),
        )
        if self._wanted.in_reasoning:
            return thought
        return either(body, words(literal(reasoning.open), thought))

    def _free(self, calls: Calls) -> str:
        """Free text in which every call is one of ours."""
        markers = [entry.marker for entry in calls.entries]
        text = without(*markers)
        if calls.bare is not None:
            # No marker announces a call at the start, but its brace does.
            rest = f"/(\\s*[^\\s{{](?s:.*))?{escaped(markers[0])}/"
            plain = self._rules.add("TEXT", rf"{text} & /\s*([^\s{{](?s:.*))?/")
            tagged = self._rules.add("tagged[lazy]", rest)
            return either(f"{plain}?", calls.bare, words(tagged.partition("[")[0], calls.entries[0].rest))
        ways = [words(self._until(entry.marker), entry.rest) for entry in calls.entries]
        tail = self._rules.add("TEXT", text)
        body = self._rules.add("answer", f"({either(*ways)})* {tail}?")
        reasoning, form = self._dialect.reasoning, self._dialect.calls
        if reasoning is None or form is None or form.ends_reasoning:
            return body
        thought = words(self._until(reasoning.close), body)
        return thought if self._wanted.in_reasoning else either(body, words(literal(reasoning.open), thought))

    def _until(self, marker: str) -> str:
        return self._rules.shared("until[lazy]", upto(marker))

    def _newlines(self, reasoning: ReasoningFormat) -> str:
        most = min(reasoning.newlines_after, _NEWLINES_MAX)
        return f"/\\n{{1,{most}}}/?" if most else ""

    # -- on channels --------------------------------------------------------------------------------------

    def _channels(self, form: Channels, text: str | None, *, forced: bool) -> str:
        others = without(form.call_end, form.answer_end, form.start, form.end)
        ended = self._rules.add("ENDED", f"({others}) {literal(form.end)}")
        closed = self._rules.add("closed[lazy]", ended).partition("[")[0]
        follows = literal(form.start + form.role)
        thought = words(literal(form.channel + form.reasoning + form.message), closed, follows)
        call = channel_call(self._rules, form, self._tools) if self._tools else None
        final = literal(form.channel + form.content)
        if forced or text is not None:
            message = text and words(
                final, f"{literal(f' {form.constrain}json')}?", literal(form.message), text
            )
            return words(f"({thought})*", either(*filter(None, (call, message))))
        kinds = either(*map(literal, (form.reasoning, form.preamble, form.content)))
        header = words(literal(form.channel), kinds, literal(form.message))
        tail = self._rules.add("TEXT", others)
        return words(f"({words(header, closed, follows)})*", either(call or "", words(header, f"{tail}?")))

    # -- formats ------------------------------------------------------------------------------------------

    def _format(self) -> str:
        form, param = self._wanted.format, self._wanted.format_param
        match form:
            case JsonSchema(schema, strict):
                limits.check_schema(param, schema)
                return json_value(schema, lenient=not strict)
            case Regex(pattern):
                limits.check_size(
                    param, "an expression of characters", len(pattern), limits.REGEX_CHARACTERS_MAX
                )
                limits.check_nesting(param, pattern)
                if not pattern:
                    raise _invalid(param, "an empty expression matches no answer")
                return self._rules.add("FORMAT", f"/{anchored(pattern, whole=True)}/")
            case Choice(options):
                limits.check_size(param, "a list of", len(options), limits.CHOICES_MAX)
                size = sum(map(len, options))
                limits.check_size(param, "choices of characters", size, limits.USER_GRAMMAR_BYTES_MAX)
                if not options or "" in options:
                    raise _invalid(param, "choices must be at least one text, none of them empty")
                return either(*map(literal, options))
            case Grammar(lark):
                limits.check_grammar(param, lark)
                self._user = lark
                return f"@{_USER}"
            case _:
                return json_value({"type": "object"}, lenient=False)


def _chosen(wanted: Wanted, *, forced: bool) -> Sequence[ToolOffer]:
    """The tools that may be called."""
    if wanted.named is not None:
        tools = [tool for tool in wanted.tools if tool.name == wanted.named]
        if not tools:
            raise _invalid(wanted.choice_param, f"no tool is named {wanted.named[:100]!r}")
        return tools[:1]
    if forced and not wanted.tools:
        raise _invalid(wanted.choice_param, "a call is required and no tool is on offer")
    return wanted.tools


def _invalid(param: str, why: str) -> RequestError:
    return RequestError(f"{param}: {why}", code="invalid_value", param=param)


def _refused(param: str, why: str) -> RequestError:
    return RequestError(f"{param}: {why}", code="unsupported_by_model", param=param)
