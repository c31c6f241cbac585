# SPDX-License-Identifier: MIT
"""`tokenspeed serve [MODEL]`: the HTTP server. No torch in this process."""

from __future__ import annotations

from tokenspeed.base.config import EngineConfig
from tokenspeed.base.flags import Parser, add_options, config_of
from tokenspeed.serve import server


def parser() -> Parser:
    made = Parser("serve", "Serve a model over HTTP, in the OpenAI dialect.")
    add_options(made, ("model", "cache", "scheduler", "device", "server"))
    return made


def parse(argv: list[str]) -> EngineConfig:
    """The configuration of a command line."""
    return config_of(parser().parse_args(argv))


def main(argv: list[str]) -> None:
    server.serve(parse(argv))
