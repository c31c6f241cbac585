# SPDX-License-Identifier: MIT
"""`tokenspeed COMMAND ...`: find the command, run it, turn errors into one line and an exit code.

Exit codes: 0 done, 2 a mistake the operator can fix (one line on stderr, no traceback), 130 interrupted. A
module of a command has `main(argv) -> int | None`; it is imported only when its command is called, because
some of them load torch and the server must not.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

from tokenspeed import __version__
from tokenspeed.base import env, log
from tokenspeed.base.errors import RequestError, SetupError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("tokenspeed.cli.serve", "serve a model over HTTP (the bundled one when none is named)"),
    "generate": ("tokenspeed.cli.generate", "answer one prompt on the command line"),
    "explain": ("tokenspeed.cli.explain", "say which kernel an op gets here, and why not the others"),
    "env": ("tokenspeed.cli.environment", "print versions, devices and TOKENSPEED_* variables"),
    "bench": ("tokenspeed.cli.bench", "run a benchmark: agentic | report | scheduler | kernels"),
    "sim": (
        "tokenspeed.sim.main",
        "run the control plane over seeded worlds, recorded sessions, or a log again",
    ),
    "plan": ("tokenspeed.sim.capacity", "say how many sessions a device holds at a floor"),
    "audit": ("tokenspeed.audit.main", "recompute every floor window of an event log"),
}
EXIT_SETUP: Final = 2
EXIT_INTERRUPTED: Final = 130


def usage() -> str:
    """The text of `tokenspeed --help`."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: tokenspeed COMMAND [ARGUMENTS]",
            "",
            "An LLM inference engine for agentic workloads.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
            "",
            "tokenspeed COMMAND --help lists a command's options; tokenspeed --version prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else EXIT_SETUP
    if words[0] in ("-V", "--version"):
        print(f"tokenspeed {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"tokenspeed: no command {words[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_SETUP
    module, _ = COMMANDS[words[0]]
    try:
        env.check_known()
        _configure_log()
        return importlib.import_module(module).main(words[1:]) or 0
    except (SetupError, RequestError) as error:
        print(f"tokenspeed {words[0]}: {error}", file=sys.stderr)
        return EXIT_SETUP
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _configure_log() -> None:
    level = env.get("TOKENSPEED_LOG_LEVEL") or "info"
    if level not in log.LEVELS:
        raise SetupError(f"TOKENSPEED_LOG_LEVEL is {level!r}; it must be one of {', '.join(log.LEVELS)}")
    log.configure(level)


if __name__ == "__main__":
    sys.exit(main())
