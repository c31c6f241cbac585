# SPDX-License-Identifier: MIT
"""`tokenspeed generate`: one prompt, one answer on stdout as it comes, figures on stderr.

The prompt is `--prompt`, or stdin. It goes through the chat template unless `--raw` is given or the model has
none. The same engine and text plane as the server's, without HTTP between.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from tokenspeed.base.config import EngineConfig
from tokenspeed.base.errors import SetupError
from tokenspeed.base.flags import Parser, add_options, config_of
from tokenspeed.base.sampling import SEED_DRAWN
from tokenspeed.engine import wire
from tokenspeed.engine.source import locate
from tokenspeed.serve.server import start
from tokenspeed.text.events import ArgumentsDelta, CallEnd, CallStart, Content, Event, Reasoning
from tokenspeed.text.output import OutputOptions, OutputReader
from tokenspeed.text.plane import ChatPrompt, TextPlane


def parser() -> Parser:
    made = Parser("generate", "Answer one prompt: from --prompt, or from stdin.")
    made.add_argument("--prompt", metavar="TEXT", help="the prompt; stdin when absent")
    made.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )
    made.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    made.add_argument(
        "--temperature", type=float, metavar="X", help="0 is greedy; the model's own when absent"
    )
    made.add_argument(
        "--request-seed", type=int, default=SEED_DRAWN, metavar="N", help="makes sampling repeatable"
    )
    add_options(made, ("model", "cache", "scheduler", "device"))
    return made


def main(argv: list[str]) -> None:
    arguments = parser().parse_args(argv)
    config = config_of(arguments, prefer={"log_level": "warning"})
    if arguments.max_tokens < 1:
        raise SetupError(f"--max-tokens {arguments.max_tokens}: it must be at least 1")
    directory = locate(config.model.model)  # before stdin is read: a prompt in the model's place is noticed
    prompt: str = sys.stdin.read() if arguments.prompt is None else arguments.prompt
    if not prompt:
        raise SetupError("the prompt is empty; use --prompt TEXT, or write it to stdin")
    asyncio.run(_generate(config, directory, prompt, arguments))


async def _generate(
    config: EngineConfig, directory: Path, prompt: str, arguments: argparse.Namespace
) -> None:
    started_s = time.monotonic()
    engine, text = await start(config, directory)
    try:
        encoded = _encode(text, prompt, raw=arguments.raw)
        given: dict[str, Any] = {
            "seed": arguments.request_seed,
            "tokens_max": arguments.max_tokens,
            "stop_ids": text.stop_ids,
        }
        if arguments.temperature is not None:
            given["temperature"] = arguments.temperature
        params = msgspec.structs.replace(text.defaults.sampling(), **given)
        options = OutputOptions(dialect=text.dialect, in_reasoning=encoded.in_reasoning, calls=True)
        reader = OutputReader(text.tokenizer, options, prompt=encoded.ids)
        ready_s = time.monotonic()
        first_s: float | None = None
        stream = engine.generate(encoded.ids, params)
        async for delta in stream:
            if first_s is None and delta.ids:
                first_s = time.monotonic()
            for event in reader.feed(wire.ids_array(delta.ids).tolist(), delta.finish):
                print(_shown(event), end="", flush=True)
        ended_s = time.monotonic()
        print()
        first_s = first_s or ended_s
        rate = (stream.output_tokens - 1) / (ended_s - first_s) if stream.output_tokens > 1 else 0.0
        print(
            f"[{len(encoded.ids)} prompt tokens, {stream.output_tokens} new, finish {reader.finish}; "
            f"ready {ready_s - started_s:.2f} s, first token {first_s - ready_s:.3f} s, {rate:.1f} tokens/s]",
            file=sys.stderr,
        )
    finally:
        await engine.stop()


def _encode(text: TextPlane, prompt: str, *, raw: bool) -> ChatPrompt:
    if raw or text.template is None:
        return ChatPrompt(text.tokenizer.encode(prompt, add_special_tokens=True), in_reasoning=False)
    return text.prompt_of_chat([{"role": "user", "content": prompt}])


def _shown(event: Event) -> str:
    match event:
        case Content(text) | Reasoning(text) | ArgumentsDelta(_, text):
            return text
        case CallStart(_, name):
            return f"\n[call {name} "
        case CallEnd(_, status):
            return f"]{'' if status == 'complete' else ' ' + status}\n"
