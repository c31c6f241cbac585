# SPDX-License-Identifier: MIT
"""jinja for templates that nobody vouches for: sandboxed, immutable, with fuel.

A model directory is untrusted data. Beyond jinja's own sandbox (no attribute leads out, nothing passed in can
be changed; lists that a template makes itself may grow and shrink), a rendering here may spend a bounded amount
of CPU time and build strings of bounded length; past that it ends with `FuelExhausted`. Every loop body and
every call checks the time; `+ ~ * ** %` and numeric arguments check the size. The dialect is the one chat
templates are written for: trimmed blocks, loop controls, `generation` blocks (which render their body), `tojson`
without ASCII escaping, `raise_exception`, `strftime_now`.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

CPU_SECONDS_MAX: Final = 5.0
CHARACTERS_MAX: Final = 64 << 20
SOURCE_CHARACTERS_MAX: Final = 1 << 20
_TICKS_PER_LOOK: Final = 256  # loop turns between two looks at the clock
_INTEGER_BITS_MAX: Final = 4096


class FuelExhausted(jinja2.TemplateError):
    """A rendering asked for more time or memory than a chat template can need."""


class TemplateRefusal(jinja2.TemplateError):
    """The template itself refused its input, through `raise_exception`."""


class _Fuel:
    """CPU time one rendering may still spend."""

    __slots__ = ("_deadline", "_ticks")

    def __init__(self, seconds: float) -> None:
        self._deadline = time.thread_time() + seconds
        self._ticks = 0

    def tick(self) -> None:
        self._ticks += 1
        if self._ticks % _TICKS_PER_LOOK == 0 and time.thread_time() > self._deadline:
            raise FuelExhausted("the template ran for too long")


class _Inputs:
    """The lists given to one rendering, which it must leave alone."""

    __slots__ = ("_lists", "_variables")

    def __init__(self, variables: dict[str, Any]) -> None:
        self._variables = variables
        self._lists: set[int] | None = None  # identities; looked up only by templates that change lists

    def holds(self, candidate: list[Any]) -> bool:
        if self._lists is None:
            self._lists = set()
            waiting: list[Any] = [self._variables]
            while waiting:
                each = waiting.pop()
                if isinstance(each, list):
                    self._lists.add(id(each))
                if isinstance(each, dict | list | tuple):
                    waiting += each.values() if isinstance(each, dict) else each
        return id(candidate) in self._lists


_fuel: ContextVar[_Fuel] = ContextVar("_fuel")
_inputs: ContextVar[_Inputs] = ContextVar("_inputs")
_LIST_CHANGES: Final = frozenset({"append", "pop"})


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model wrote, for training; here it is its
    body."""

    tags = {"generation"}  # noqa: RUF012  (declared so by the base class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metering(NodeTransformer):
    """Puts a look at the fuel into every loop body, and `~` under the size bound."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  (named by the base class)
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(
            nodes.EnvironmentAttribute("concatenate"), node.nodes, [], None, None, lineno=node.lineno
        )


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one model's templates."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.globals: MutableMapping[str, Any]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda pattern: now().strftime(str(pattern))

    def load_source(self, source: str) -> jinja2.Template:
        """Compile a template; `jinja2.TemplateError` if it is none."""
        if len(source) > SOURCE_CHARACTERS_MAX:
            raise jinja2.TemplateError(
                f"a template of {len(source)} characters; at most {SOURCE_CHARACTERS_MAX}"
            )
        try:
            code = self.compile(_Metering().visit(self.parse(source)))
        except RecursionError as error:
            raise jinja2.TemplateError("the template is nested too deeply") from error
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr in _LIST_CHANGES and type(obj) is list:
            return not _inputs.get().holds(obj)
        return super().is_safe_attribute(obj, attr, value)

    def tick(self) -> str:
        """Spend a little fuel."""
        _fuel.get().tick()
        return ""

    def concatenate(self, *parts: Any) -> str:
        """The `~` operator."""
        texts = [str(part) for part in parts]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        match operator:
            case "+":
                _check_length(_length(left) + _length(right))
            case "*":
                _check_length(max(_length(left) * _count(right), _length(right) * _count(left)))
                _check_bits(_bits(left) + _bits(right))
            case "**":
                _check_bits(_bits(left) * _count(right))
            case _:
                if isinstance(left, str):
                    raise FuelExhausted("% on a string can make any length; use ~ or replace")
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Context, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.tick()
        _check_arguments(args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Render within the bounds; raises `jinja2.TemplateError` for whatever goes wrong inside."""
    token = _fuel.set(_Fuel(CPU_SECONDS_MAX))
    inputs_token = _inputs.set(_Inputs(variables))
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(variables):
            length += len(piece)
            _check_length(length)
            pieces.append(piece)
    except jinja2.TemplateError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # The template's own mistakes on this input, an absent field for example.
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
    finally:
        _fuel.reset(token)
        _inputs.reset(inputs_token)
    return "".join(pieces)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose numeric arguments cannot ask for huge results."""

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(args, kwargs)
        return function(*args, **kwargs)

    return bounded


def _check_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > CHARACTERS_MAX:
            raise FuelExhausted(f"an argument of {value}")


def _check_length(length: int) -> None:
    if length > CHARACTERS_MAX:
        raise FuelExhausted(f"a text or list of {length} elements")


def _check_bits(bits: int) -> None:
    if bits > _INTEGER_BITS_MAX:
        raise FuelExhausted(f"an integer of {bits} bits")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)
