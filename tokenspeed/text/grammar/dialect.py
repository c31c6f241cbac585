# SPDX-License-Identifier: MIT
"""Tool calls of a dialect as a grammar, from the spec that its parser reads by.

In: a `CallFormat` and the tools on offer. Out: `Calls`: expressions over `Rules` in which every sentence is calls
of these tools that the parser reads back, with arguments their schemas allow. Written as the family's templates
write; what a parser merely tolerates is no sentence. Arguments stand in the order in which a schema declares
them, and only those it declares.

A string in an element never holds the element's closing marker, so its end is where the parser sees it. One hole
is left: a string inside a JSON value of an element may quote that marker with the call's next one behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokenspeed.base.errors import RequestError
from tokenspeed.text.grammar import schema as schemas
from tokenspeed.text.grammar.lark import Rules, either, json_value, literal, upto, without, words
from tokenspeed.text.grammar.schema import UnsaidError
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import CallFormat, Channels, Elements, Envelope, parts

_HEAD_NAME: Final = re.compile(r"[^\s<>{}\[\]\"'`]{1,256}")  # what a reader takes for a name
_KEY: Final = re.compile(r"[^<>\"\n]{1,512}")
_ANY_KEY: Final = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"
_COUNT: Final = "/[0-9]{1,4}/"
_SHORT_ID: Final = "/[A-Za-z0-9]{9}/"
_STRING: Final = frozenset({"string"})
_BARRED: Final = {"/": r"\/", "\n": r"\n"}
_INSIDE: Final = _BARRED | {r"\d": "0-9", r"\w": "0-9A-Za-z_"}
_OUTSIDE: Final = _BARRED | {
    r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolOffer:
    """A tool that may be called."""

    name: str
    schema: dict[str, Any] | None
    """JSON schema of its arguments; None for none said."""
    strict: bool = False
    """Hold arguments to all of the schema, or refuse it; else to as much of it as a grammar can say."""
    param: str = "tools"
    """Where the request holds it, for errors."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A way into calls: the marker that a reader looks for, and what follows it."""

    marker: str
    rest: str


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one answer."""

    whole: str
    """From the first marker to the last: one call, or several where the dialect and the request have it so."""
    entries: tuple[Entry, ...]
    """The same after free text, of which the marker is the end."""
    bare: str | None = None
    """A call that no marker announces, at the start of an answer."""


def calls_of(rules: Rules, form: CallFormat, tools: Sequence[ToolOffer], *, several: bool) -> Calls:
    """Calls of these tools. Raises `RequestError` for a tool that cannot be held to its schema."""
    writer = _Writer(rules, form, tools)
    each = rules.shared("call", either(*(writer.call(tool) for tool in tools)))
    section, several = form.section, several and form.parallel
    single = words(literal(form.open), each)
    if section is None:
        whole = _row(single, form.joint, several=several)
        return Calls(whole, (_entry(form.open, each),))
    if section.omitted == "usual":
        tagged = words(literal(section.open), each, literal(section.close))
        return Calls(either(each, tagged), (_entry(section.open, each, literal(section.close)),), bare=each)
    opener = section.open + form.open
    if section.each:
        one = words(literal(opener), each, literal(section.close))
        whole, inner = _row(one, form.joint, several=several), words(each, literal(section.close))
    else:
        more = _more(single, form.joint) if several else ""
        inner = words(each, more, literal(section.close))
        whole = words(literal(opener), inner)
    alone = (_entry(form.open, each),) if section.omitted == "tolerated" else ()
    return Calls(whole, (_entry(opener, inner), *alone))


def channel_call(rules: Rules, form: Channels, tools: Sequence[ToolOffer]) -> str:
    """A message that calls one of these tools, from its header to its arguments; a token of the model's ends it."""
    constrain = rules.shared(
        "constrain",
        either(literal(" json"), literal(f" {form.constrain}json"), literal(f"{form.constrain}json")),
    )
    written: list[str] = []
    for tool in tools:
        if re.fullmatch(r"[^\s<]{1,256}", tool.name) is None:
            raise _unwritable(tool)
        to = f"{form.recipient}{form.namespace}{tool.name}"
        channel = form.channel + form.preamble
        header = either(literal(f" {to}{channel}"), literal(f"{channel} {to}"))
        written.append(words(header, f"{constrain}?", literal(form.message), _object(tool)))
    return rules.shared("call", either(*written))


class _Writer:
    """Writes calls of one format, from the name on."""

    def __init__(self, rules: Rules, form: CallFormat, tools: Sequence[ToolOffer]) -> None:
        self._rules = rules
        self._form = form
        offers = ({"function": {"name": tool.name, "parameters": tool.schema}} for tool in tools)
        self._types = ArgumentTypes(list(offers))

    def call(self, tool: ToolOffer) -> str:
        """A rule of this tool's call, after `form.open`."""
        form = self._form
        match form.arguments:
            case Envelope(name_key, arguments_key):
                name, key = json.dumps(tool.name, ensure_ascii=False), json.dumps(arguments_key)
                lead = f'{{"{name_key}": {name}, {key}: '
                call_id = words(literal(', "id": "'), _SHORT_ID, literal('"'))
                own_id = f"({call_id})?" if form.ids == "member" else ""
                body = words(literal(lead), _object(tool), own_id, literal("}" + form.close))
            case Elements():
                body = words(self._head(tool), self._elements(form.arguments, tool), literal(form.close))
            case _:
                body = words(self._head(tool), _object(tool), literal(form.close))
        return self._rules.shared("tool", body)

    def _head(self, tool: ToolOffer) -> str:
        if _HEAD_NAME.fullmatch(tool.name) is None:
            raise _unwritable(tool)
        close = literal(self._form.name_close)
        match self._form.ids:
            case "functions":
                return words(literal(f"functions.{tool.name}:"), _COUNT, close)
            case "call_id":
                return words(literal(tool.name), f'("[CALL_ID]" {_SHORT_ID})?', close)
            case _:
                return literal(tool.name + self._form.name_close)

    # -- <key>value</key> ... -----------------------------------------------------------------------------

    def _elements(self, form: Elements, tool: ToolOffer) -> str:
        root = tool.schema or {}
        try:
            if not isinstance(root.get("properties"), dict) and isinstance(root.get("$ref"), str):
                raise UnsaidError("a reference at its root")
            declared = schemas.arguments(root, strict=tool.strict)
            if not declared:
                return self._undeclared(form, tool, root)
            return words(*(self._argument(form, tool, root, each) for each in declared))
        except UnsaidError as error:
            raise _unsaid(tool, error) from error

    def _argument(
        self, form: Elements, tool: ToolOffer, root: dict[str, Any], argument: schemas.Argument
    ) -> str:
        if _KEY.fullmatch(argument.name) is None:
            raise UnsaidError(f"an argument named {argument.name[:100]!r}")
        lead = form.open + argument.name + form.key_close
        element = words(literal(lead), self._value(form, tool, root, argument))
        return element if argument.required else f"({element})?"

    def _undeclared(self, form: Elements, tool: ToolOffer, root: dict[str, Any]) -> str:
        """Arguments of a tool that declares none: any strings, where its schema lets them be."""
        if not root or not root.get("additionalProperties", "properties" not in root):
            return ""
        any_text = (
            schemas.Argument("", root["additionalProperties"], True)
            if isinstance(root.get("additionalProperties"), dict)
            else schemas.Argument("", {}, True)
        )
        value = self._value(form, tool, root, any_text)
        return f"({words(literal(form.open), _ANY_KEY, literal(form.key_close), value)})*"

    def _value(
        self, form: Elements, tool: ToolOffer, root: dict[str, Any], argument: schemas.Argument
    ) -> str:
        """A value with its markers."""
        try:
            return self._exact(form, tool, root, argument)
        except UnsaidError:
            if tool.strict:
                raise
        types = self._types.of(tool.name, argument.name)
        if "string" in types:
            return self._bare(form, {"type": "string"})
        return self._json(form, {"type": sorted(types)}, tool)

    def _exact(
        self, form: Elements, tool: ToolOffer, root: dict[str, Any], argument: schemas.Argument
    ) -> str:
        types = self._types.of(tool.name, argument.name)
        if form.json_open is None and "string" not in types:
            return self._json(form, schemas.standing_alone(argument.schema, root), tool)
        texts, others = _parted(schemas.branches(argument.schema, root))
        if form.json_open is not None:
            # The markup says which it is, so every alternative is said in its own way.
            written = [self._bare(form, branch) for branch in texts]
            written += [self._json(form, schemas.standing_alone(branch, root), tool) for branch in others]
            return either(*written)
        if types == _STRING:
            if others:
                raise UnsaidError("an argument that is not only a string")
            return either(*(self._bare(form, branch) for branch in texts))
        if all(map(schemas.is_plain, (*texts, *others))):
            return self._bare(form, {"type": "string"})  # whatever it reads as is allowed
        # Bare text could read as a value that its alternative forbids; a string in quotes reads as a string.
        return self._json(form, schemas.standing_alone(argument.schema, root), tool)

    def _bare(self, form: Elements, branch: dict[str, Any]) -> str:
        """A string as it stands, from its opening marker to its closing one."""
        stop, rest = _ending(form)
        opener = literal(form.value_open + form.padding)
        values = branch.get("enum", [branch["const"]] if "const" in branch else None)
        if isinstance(values, list):
            said = [each for each in values if isinstance(each, str) and parts(form.close)[0] not in each]
            if not said:
                raise UnsaidError("an enumeration without a string that can be written")
            return words(
                either(*(literal(form.value_open + form.padding + each + stop) for each in said)), rest
            )
        # A lexeme that ends at the first closing marker; where padding is part of that, text quotes none before.
        lexeme = (
            upto(stop) if not form.padding and _free(branch) else f"({_text(branch, form)}) {literal(stop)}"
        )
        value = self._rules.shared("value[lazy]", self._rules.shared("VALUE", lexeme))
        return words(opener, value, rest)

    def _json(self, form: Elements, schema: dict[str, Any], tool: ToolOffer) -> str:
        """A JSON value between its markers."""
        stop, rest = _ending(form)
        opener = form.value_open if form.json_open is None else form.json_open
        value = json_value(schema, lenient=not tool.strict)
        if form.python_words and schema.keys() <= {"type", "description"} and schema.get("type") == "boolean":
            value = either(*(literal(word) for word in ("True", "False", "true", "false")))
        return words(literal(opener + form.padding), value, literal(stop), rest)


def _parted(branches: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Alternatives that are strings, and the others; one that is both is parted, if that can be."""
    texts: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for branch in branches:
        values = branch.get("enum", [branch["const"]] if "const" in branch else None)
        if schemas.is_text(branch):
            texts.append(branch)
        elif "type" in branch:
            others.append(branch)
        elif isinstance(values, list):
            said = [each for each in values if isinstance(each, str)]
            rest = [each for each in values if not isinstance(each, str)]
            texts += [{"enum": said}] if said else []
            others += [{"enum": rest}] if rest else []
        elif not branch.keys() - {"title", "description", "default", "examples"}:
            texts.append({"type": "string"})
        else:
            raise UnsaidError("an argument without a type")
    return texts, others


def _free(branch: dict[str, Any]) -> bool:
    return not branch.keys() & {"pattern", "minLength", "maxLength"}


def _text(branch: dict[str, Any], form: Elements) -> str:
    """Body of a terminal: strings of a schema that do not hold the closing marker."""
    conditions: list[str] = []
    if isinstance(branch.get("pattern"), str):
        conditions.append(f"/{anchored(branch['pattern'])}/")
    least, most = branch.get("minLength"), branch.get("maxLength")
    if least or most is not None:
        conditions.append(f"/(?s:.{{{int(least or 0)},{'' if most is None else int(most)}}})/")
    return " & ".join((*conditions, without(parts(form.close)[0])))


def anchored(pattern: str, *, whole: bool = False) -> str:
    """A JSON schema's pattern, which may match anywhere, or a pattern that is to match the `whole` of a text."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = _slashed(pattern[int(begins) : len(pattern) - int(ends)], as_schema=not whole)
    anything = "(?s:.*)"
    return f"{'' if begins or whole else anything}(?:{inner}){'' if ends or whole else anything}"


def _slashed(pattern: str, *, as_schema: bool) -> str:
    """A pattern that may stand between slashes; in a schema, digits and letters are ASCII's."""
    in_class = False
    written: list[str] = []
    for found in re.finditer(r"\\.|[^\\]|\\$", pattern, re.DOTALL):
        piece = found[0]
        if piece in "[]":
            in_class = piece == "["
        classes = _INSIDE if in_class else _OUTSIDE
        written.append(classes.get(piece, piece) if as_schema else _BARRED.get(piece, piece))
    return "".join(written)


def _object(tool: ToolOffer) -> str:
    """All arguments as one JSON object."""
    schema = tool.schema or {}
    if "type" not in schema and "$ref" not in schema:
        schema = {"type": "object", **schema}
    return json_value(schema, lenient=not tool.strict)


def _ending(form: Elements) -> tuple[str, str]:
    """What ends a value, and what is written behind it."""
    close = parts(form.close)[0]
    return form.padding + close, literal(form.close.removeprefix(close))


def _entry(opener: str, *rest: str) -> Entry:
    marker = parts(opener)[0]
    return Entry(marker, words(literal(opener.removeprefix(marker)), *rest))


def _row(call: str, joint: str, *, several: bool) -> str:
    return words(call, _more(call, joint) if several else "")


def _more(call: str, joint: str) -> str:
    return f"({words(literal(joint), call)})*"


def _unwritable(tool: ToolOffer) -> RequestError:
    return RequestError(
        f"{tool.param}: this model cannot write the name {tool.name[:100]!r}; use letters, digits, '_' and '-'",
        code="invalid_value",
        param=tool.param,
    )


def _unsaid(tool: ToolOffer, error: UnsaidError) -> RequestError:
    return RequestError(
        f"{tool.param}: this model writes arguments one by one and cannot be held to {error}; "
        "leave out strict, or say it in another way",
        code="invalid_value",
        param=tool.param,
    )
