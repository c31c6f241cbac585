# SPDX-License-Identifier: MIT
"""Command-line flags from the configuration's fields: names, types, bounds, choices and help have one source.

In: the branches a command takes. Out: an `argparse` parser, and an `EngineConfig` from what it parsed. Values
are checked by `base.config.build`, so the command line refuses exactly what the library refuses. Used by the
commands and by benchmarks that run an engine in their own process.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, Final

from tokenspeed.base import config, env, log
from tokenspeed.base.config import EngineConfig, Option
from tokenspeed.base.errors import SetupError

_TITLES: Final = {
    "model": "model",
    "cache": "cache",
    "scheduler": "scheduler",
    "device": "device",
    "server": "server",
}
_SUFFIXES: Final = {"k": 10, "m": 20, "g": 30}
_SIZE: Final = re.compile(r"(\d+)\s*([kmg])i?b?", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are `SetupError`, like every other mistake of the operator's."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"tokenspeed {command}", description=description, allow_abbrev=False, formatter_class=_Help
        )

    def error(self, message: str) -> Any:
        raise SetupError(f"{message}; see {self.prog} --help")


class _Help(argparse.HelpFormatter):
    """One width everywhere, so that help does not depend on the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def add_options(parser: Parser, branches: Sequence[str]) -> None:
    """Add the flags of these branches of the configuration; unset ones stay out of the namespace."""
    groups = {branch: parser.add_argument_group(_TITLES[branch]) for branch in branches}
    for option in config.options():
        if option.branch in groups:
            _add(groups[option.branch], option)


def config_of(namespace: argparse.Namespace, *, prefer: dict[str, Any] | None = None) -> EngineConfig:
    """The configuration of a parsed command line; `prefer` replaces defaults. Sets the log level."""
    names = {option.name for option in config.options()}
    values = {name: value for name, value in vars(namespace).items() if name in names}
    for option in config.options():
        if option.repeated and option.name in values:
            values[option.name] = tuple(values[option.name])
    from_env: dict[str, Any] = {}
    if (key := env.get("TOKENSPEED_API_KEY")) is not None:
        from_env["api_key"] = key
    if (level := env.get("TOKENSPEED_LOG_LEVEL")) is not None:
        from_env["log_level"] = level
    built = config.build(**{**(prefer or {}), **from_env, **values})
    log.configure(built.server.log_level)
    return built


def _add(group: argparse._ArgumentGroup, option: Option) -> None:  # pyright: ignore[reportPrivateUsage]
    arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(option)}
    if not option.flag:
        group.add_argument(option.name, nargs="?", metavar=option.name.upper(), **arguments)
        return
    arguments["dest"] = option.name
    if option.type is bool:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **arguments)
        return
    if option.choices:
        arguments["metavar"] = "{" + ",".join(option.choices) + "}"
    else:
        arguments["metavar"] = (option.unit or {int: "N", float: "X"}.get(option.type, "VALUE")).upper()
    if option.repeated:
        arguments["action"] = "append"
    group.add_argument(option.flag, type=_reader(option), **arguments)


def _help(option: Option) -> str:
    plain = option.default is not None and option.default != () and option.type is not bool
    shown = f" (default {option.default})" if plain or option.default is True else ""
    return (option.help + shown).replace("%", "%%")


def _reader(option: Option) -> Any:
    """A function from a word to the option's type."""

    def read(word: str) -> Any:
        size = _SIZE.fullmatch(word) if option.unit == "bytes" else None
        if size:
            return int(size[1]) << _SUFFIXES[size[2].lower()]
        try:
            return option.type(word)
        except ValueError as error:
            wanted = {int: "a whole number", float: "a number"}[option.type]
            raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from error

    return read
