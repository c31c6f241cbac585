# SPDX-License-Identifier: MIT
"""`tokenspeed explain OP [TRAIT=VALUE ...]` and `tokenspeed explain model [MODEL]`.

For an op: the kernel it gets on this machine, and for every other kernel why not. For a model: what the
engine chooses when it starts with these options, each choice with its reason; that starts a core, and stops
it.
"""

from __future__ import annotations

import asyncio
import dataclasses

from tokenspeed.base.config import EngineConfig
from tokenspeed.base.flags import Parser, add_options, config_of
from tokenspeed.engine.front import AsyncEngine
from tokenspeed.engine.source import locate
from tokenspeed.exec.facts import choose_device
from tokenspeed.kernels.device import describe
from tokenspeed.kernels.explain import explain
from tokenspeed.kernels.load import registry
from tokenspeed.kernels.select import Overrides


def parser() -> Parser:
    made = Parser("explain", "Say which kernel an op gets on this machine and why; without OP, list the ops.")
    made.add_argument("op", nargs="?", metavar="OP", help="an op, or the word model")
    made.add_argument(
        "traits", nargs="*", metavar="TRAIT=VALUE", help="what the layer is like; MODEL after model"
    )
    add_options(made, ("device",))
    return made


def main(argv: list[str]) -> None:
    if argv[:1] == ["model"]:
        _explain_model(argv[1:])
        return
    arguments = parser().parse_args(argv)
    config = config_of(arguments, prefer={"log_level": "warning"})
    ops = registry()
    if arguments.op is None:
        print("\n".join(f"{op.name:<24} {op.summary}" for op in ops.ops()))
        return
    device = describe(choose_device(config.device.device))
    if config.device.threads is not None:
        device = dataclasses.replace(device, cores=config.device.threads)
    print(explain(ops, arguments.op, device, Overrides.parse(config.device.kernel, ops), arguments.traits))


def _explain_model(argv: list[str]) -> None:
    made = Parser("explain model", "Say what the engine chooses for a model and why.")
    add_options(made, ("model", "cache", "scheduler", "device"))
    config = config_of(made.parse_args(argv), prefer={"log_level": "warning"})
    locate(config.model.model)
    asyncio.run(_print_choices(config))


async def _print_choices(config: EngineConfig) -> None:
    engine = await AsyncEngine.start(config)
    try:
        width = max((len(what) for what, _, _ in engine.ready.choices), default=0)
        for what, value, why in engine.ready.choices:
            print(f"{what:<{width}}  {value}  ({why})")
    finally:
        await engine.stop()
