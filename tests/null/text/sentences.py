# SPDX-License-Identifier: MIT
"""Sentences of grammars, taken at random, and what must hold of them; at length: `python sentences.py COUNT [NAME]`.

Tools with random schemas are put on offer to a dialect. A random walk over masks makes an answer; the dialect's
parser must read it as calls of those tools, whole, with arguments that a validator of ours, which knows nothing of
grammars, finds to be of their schemas; or, where calls are free, as text without any call that is not so.
"""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenspeed.text.events import ArgumentsDelta, CallEnd, CallStart, Content, Event
from tokenspeed.text.grammar import AnyJson, JsonSchema, ToolOffer, Wanted, constraint_for
from tokenspeed.text.grammar.matcher import Masks, Vocabulary, Walk, compiled
from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.parser import OutputParser
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import Dialect, Elements

FREE_TOKENS = 120  # then a walk makes for the end
TOKENS_MAX = 4000
PIECES = (
    '{"',
    '"}',
    '": ',
    '", "',
    '"}}',
    "</",
    "<",
    "}\n",
    "]}",
    "\n\n",
    " the",
    "a",
    "true",
    "null",
    '"},',
    "}}",
)
CLOSERS = (b'"', b"}", b"]", b'"}', b"]}", b'"}}', b"}}", b'": ', b"0", b"\n", b":", b">")


def tokens_of(dialect: Dialect) -> list[bytes]:
    """Every byte, the dialect's markers, and pieces that cross the edges of words."""
    texts = [token.encode() for token in (*dialect.tokens, *PIECES)]
    return list(dict.fromkeys([*(bytes([i]) for i in range(256)), *texts]))


@dataclass(frozen=True, slots=True)
class Walker:
    """Random sentences over one vocabulary."""

    vocabulary: Vocabulary
    tokens: list[bytes]
    closers: list[int]
    markers: frozenset[int]

    @classmethod
    def of(cls, dialect: Dialect) -> Walker:
        vocabulary = Vocabulary(tokens_of(dialect))
        markers = {token.encode() for token in dialect.tokens}
        names = tokens_of(dialect)
        closers = [i for i, name in enumerate(names) if name in markers or name in CLOSERS]
        return cls(
            vocabulary, names, closers, frozenset(i for i, name in enumerate(names) if name in markers)
        )

    def sentence(self, walk: Walk, rng: random.Random, *, quotes: bool) -> str | None:
        """A sentence; None where the walk found no end in time. Markers come anywhere where it `quotes` them."""
        masks = Masks(self.vocabulary, 1)
        out = np.zeros((1, self.vocabulary.words), np.int32)
        said: list[bytes] = []
        for count in range(TOKENS_MAX):
            masks.fill([walk], out)
            assert not walk.error, walk.error
            bits = np.unpackbits(out.view(np.uint8)[0], bitorder="little")[: self.vocabulary.size + 1]
            allowed = np.flatnonzero(bits).tolist()
            assert allowed, b"".join(said)
            if bits[-1] and (len(allowed) == 1 or count > FREE_TOKENS or rng.random() < 0.3):
                return b"".join(said).decode()
            token = self._next(allowed[:-1] if bits[-1] else allowed, count, rng, quotes=quotes)
            assert walk.take(token)
            said.append(self.tokens[token])
        return None

    def _next(self, allowed: list[int], count: int, rng: random.Random, *, quotes: bool) -> int:
        if not quotes:
            allowed = [i for i in allowed if i not in self.markers] or allowed
        closing = [i for i in self.closers if i in set(allowed)]
        if closing and (count > FREE_TOKENS or rng.random() < 0.35):
            return rng.choice(closing)
        return rng.choice(allowed)


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of keywords that `fits` judges."""
    kinds = (
        "string",
        "integer",
        "number",
        "boolean",
        "null",
        "enum",
        "any_of",
        "pattern",
        "length",
        "const",
        "types",
    )
    kind = rng.choice((*kinds, "array", "object") if depth < 2 else kinds)
    match kind:
        case "enum":
            return {"type": "string", "enum": rng.sample(["a", "b c", 'q"', "é", "x/y", "null"], 3)}
        case "const":
            return {"const": rng.choice(["k", 7, True, None])}
        case "types":
            return {"type": rng.sample(["string", "integer", "null", "boolean"], 2)}
        case "any_of":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
        case "pattern":
            return {"type": "string", "pattern": rng.choice([r"^[a-c]{2,4}$", r"^\d+/x$", "^(ab|cd)e?$"])}
        case "length":
            return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 6)}
        case "integer":
            return rng.choice(({"type": "integer"}, {"type": "integer", "minimum": -5, "maximum": 12}))
        case "array":
            return {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": rng.randint(1, 3)}
        case "object":
            return object_schema(rng, depth + 1)
        case _:
            return {"type": kind}


def object_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    names = rng.sample(["path", "old_str", "n", "深", "a-b", "x y", "flag", "list"], rng.randint(0, 4))
    schema = {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    return {**schema, "additionalProperties": False} if rng.random() < 0.7 else schema


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is of a schema."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "const" in schema:
        return json.dumps(value) == json.dumps(schema["const"])
    kinds = schema.get("type", [])
    if kinds and not any(_is(value, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, str):
        length = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return length and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, list):
        return len(value) <= schema.get("maxItems", len(value)) and all(
            fits(v, schema["items"]) for v in value
        )
    if isinstance(value, dict):
        known = schema.get("properties", {})
        extra = schema.get("additionalProperties", True) or value.keys() <= known.keys()
        return (
            extra
            and all(name in value for name in schema.get("required", ()))
            and all(fits(v, known[name]) for name, v in value.items() if name in known)
        )
    return True


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds = {
        "string": str,
        "integer": int,
        "number": int | float,
        "array": list,
        "object": dict,
        "null": type(None),
    }
    return kind in kinds and (
        isinstance(value, kinds[kind]) or (kind == "integer" and value in (float("inf"), 0.0))
    )


def check(dialect: Dialect, walker: Walker, rng: random.Random) -> str | None:
    """One case; its sentence, None where it found no end."""
    tools = [
        ToolOffer(name, object_schema(rng), rng.random() < 0.5)
        for name in rng.sample(["get", "put_it", "mcp.x-y"], 2)
    ]
    mode = rng.choice(("required", "named", "free", "json"))
    wanted = Wanted(
        tools=tools if mode != "free" else [*tools, ToolOffer("strict", object_schema(rng), True)],
        choice="required" if mode == "required" else "auto",
        named=tools[0].name if mode == "named" else None,
        format=rng.choice((AnyJson(), JsonSchema(object_schema(rng)))) if mode == "json" else None,
        parallel=rng.random() < 0.7,
        in_reasoning=dialect.reasoning is not None and rng.random() < 0.3,
    )
    constraint = constraint_for(dialect, wanted)
    assert constraint is not None
    walk = Walk(compiled(constraint, walker.vocabulary))
    text = walker.sentence(walk, rng, quotes=mode != "json" and not quotes_json(dialect, wanted))
    if text is not None:
        judge(dialect, wanted, mode, text)
    return text


def quotes_json(dialect: Dialect, wanted: Wanted) -> bool:
    """Whether a string of JSON may stand where the parser looks for markers: the gaps that are known, and said so in
    docs/concepts/structured-output.md."""
    if dialect.calls is None or not isinstance(dialect.calls.arguments, Elements):
        return False
    written = [json.dumps(tool.schema) for tool in wanted.tools]
    return any('"array"' in text or '"anyOf"' in text or text.count('"object"') > 1 for text in written)


def judge(dialect: Dialect, wanted: Wanted, mode: str, text: str) -> None:
    """Raise where the parser does not read a sentence as what was wanted."""
    plain = [{"function": {"name": tool.name, "parameters": tool.schema}} for tool in wanted.tools]
    parser = OutputParser(dialect, in_reasoning=wanted.in_reasoning, types=ArgumentTypes(plain))
    events = [*parser.feed(text), *parser.flush()]
    calls = calls_of(events)
    content = "".join(event.text for event in events if isinstance(event, Content))
    offered = {tool.name: tool for tool in wanted.tools}
    where = (dialect.name, mode, text, events)
    for name, arguments, status in calls:
        assert status == "complete", where
        assert name in offered, where
        assert fits(json.loads(arguments), offered[name].schema or {}), (where, offered[name].schema)
    if mode in ("required", "named"):
        assert calls, where
        assert not content.strip(), where
    if mode == "named":
        assert [name for name, _, _ in calls] == [wanted.named], where
    if mode == "json" and not calls:
        schema = wanted.format.schema if isinstance(wanted.format, JsonSchema) else {"type": "object"}
        assert fits(json.loads(content), schema), where


def calls_of(events: list[Event]) -> list[tuple[str, str, str]]:
    """(name, arguments, status) of each call."""
    calls: list[tuple[str, str, str]] = []
    for event in events:
        match event:
            case CallStart():
                calls.append((event.name, "", ""))
            case ArgumentsDelta():
                calls[-1] = (calls[-1][0], calls[-1][1] + event.text, "")
            case CallEnd():
                calls[-1] = (*calls[-1][:2], event.status)
            case _:
                pass
    return calls


def main(count: int, names: list[str]) -> None:
    for name in names or list(FAMILIES):
        walker = Walker.of(FAMILIES[name])
        endless = 0
        for seed in range(count):
            endless += check(FAMILIES[name], walker, random.Random(f"{name} {seed}")) is None
        print(f"{name}: {count - endless} sentences read back, {endless} walks without an end", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
