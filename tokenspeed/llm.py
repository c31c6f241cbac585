# SPDX-License-Identifier: MIT
"""The engine as a library: `LLM(model).generate(prompts)`, `LLM(model).chat(messages)`.

In: texts, token ids or conversations. Out: `Completion`s, in the order of the prompts. The same two
processes as the server: a core of its own, and the front on an event loop in a thread of this process, so
one path is tested and used. All prompts of a call are in the engine at once, as far as it holds them. Not
for use from several threads at once.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TextIO, TypeVar

import msgspec

from tokenspeed.base import config, log
from tokenspeed.base.errors import EngineDeadError, RequestError, SetupError
from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.engine import source, wire
from tokenspeed.engine.front import AsyncEngine, Stream
from tokenspeed.text.output import OutputOptions, OutputReader, content_of
from tokenspeed.text.plane import TextPlane

_T = TypeVar("_T")
Prompt = str | Sequence[int]
Message = dict[str, Any]
_BAR_CELLS: Final = 24
_BAR_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer."""

    text: str
    token_ids: list[int]
    """All generated ids, the stop id included."""
    finish_reason: Literal["stop", "length", "error"]
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV was reused."""
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None
    """With finish_reason "error": what happened. The other completions of the call are not affected."""


class LLM:
    """A model ready to generate. Use as a context manager, or call `close`.

    `model` is a directory, a hub id, or None for the bundled model; `options` are the fields of
    `tokenspeed.base.config`, by name: `LLM(model, dtype="float32", max_model_len=4096)`. Of the server's there is
    `log_level` alone. Raises `SetupError`.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        _refuse_server_options(options)
        directory = source.locate(None if model is None else str(model))
        settings = config.build(model=str(directory), **options)
        log.configure(settings.server.log_level)
        tokenizer = settings.model.tokenizer
        self.text = TextPlane.load(
            directory,
            tokenizer_directory=source.locate_tokenizer(tokenizer) if tokenizer else None,
            tool_call_parser=settings.model.tool_call_parser,
            reasoning_parser=settings.model.reasoning_parser,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="tokenspeed-front")
        self._thread.start()
        try:
            self._engine = self._await(AsyncEngine.start(settings))
        except BaseException:
            self._end_thread()
            raise
        self.text = self.text.within(self.ready.vocab_size)

    @property
    def ready(self) -> wire.Ready:
        """What the engine chose and measured at start."""
        return self._engine.ready

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        progress: bool | None = None,
    ) -> list[Completion]:
        """Complete each prompt, a text or token ids; one prompt alone is a list of one.

        `sampling` is one for all or one per prompt; by default what the checkpoint's authors recommend.
        `stop`, one string or several, ends an answer and is not part of it. `progress` draws a bar on stderr; by
        default when that is a terminal. Raises `RequestError` for a prompt or parameter that cannot be served,
        before anything is generated.
        """
        several = _as_list(prompts)
        encode = self.text.tokenizer.encode
        ids = [encode(p, add_special_tokens=True) if isinstance(p, str) else list(p) for p in several]
        return self._run(ids, sampling, OutputOptions(stops=_stops(stop)), ignore_eos, progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        progress: bool | None = None,
    ) -> list[Completion]:
        """Answer a conversation, or several; messages are `{"role": ..., "content": ...}` as in chat
        completions.

        The text is all the model wrote, reasoning and tool calls included. See `generate` for the rest.
        """
        conversations = _as_conversations(messages)
        ids = [self.text.prompt_of_chat(list(each), tools=tools).ids for each in conversations]
        return self._run(ids, sampling, OutputOptions(stops=_stops(stop)), ignore_eos, progress)

    def close(self) -> None:
        """End the engine's process. Harmless when it has ended."""
        if self._thread.is_alive():
            self._await(self._engine.stop())
            self._end_thread()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        prompts: list[list[int]],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        options: OutputOptions,
        ignore_eos: bool,
        progress: bool | None,
    ) -> list[Completion]:
        shown = sys.stderr.isatty() if progress is None else progress
        chosen = self._sampling_of(prompts, sampling, ignore_eos)
        return self._await(
            self._generate_all(prompts, chosen, options, _Bar(len(prompts), sys.stderr, shown))
        )

    def _sampling_of(
        self,
        prompts: list[list[int]],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        ignore_eos: bool,
    ) -> list[SamplingParams]:
        """One complete `SamplingParams` per prompt."""
        if sampling is None:
            sampling = self.text.defaults.sampling()
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else list(sampling)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts came with {len(each)} sampling parameters")
        if ignore_eos:
            return each
        stop_ids = self.text.stop_ids
        return [
            msgspec.structs.replace(s, stop_ids=tuple(dict.fromkeys((*s.stop_ids, *stop_ids)))) for s in each
        ]

    async def _generate_all(
        self, prompts: list[list[int]], sampling: list[SamplingParams], options: OutputOptions, bar: _Bar
    ) -> list[Completion]:
        for ids, params in zip(prompts, sampling, strict=True):
            self._engine.check(ids, params)  # all are good, or none is started
        room = asyncio.Semaphore(self._engine.streams_max)

        async def one(ids: list[int], params: SamplingParams) -> Completion:
            async with room:
                stream = self._engine.generate(ids, params)
                async with stream:
                    reader = OutputReader(self.text.tokenizer, options, prompt=ids)
                    done = await _read(stream, reader, params, bar)
            bar.finish_one()
            return done

        with bar:
            return await asyncio.gather(*(one(i, p) for i, p in zip(prompts, sampling, strict=True)))

    def _await(self, work: Coroutine[Any, Any, _T]) -> _T:
        if not self._thread.is_alive():
            work.close()
            raise EngineDeadError("this LLM was closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()  # leaves the streams, which aborts their requests
            raise

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(slots=True)
class _Answer:
    """A completion being read."""

    text: list[str] = field(default_factory=list[str])
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    error: str | None = None


async def _read(stream: Stream, reader: OutputReader, params: SamplingParams, bar: _Bar) -> Completion:
    """Read a stream to its end, or until its text says that it is over."""
    answer = _Answer()
    async for delta in stream:
        ids: list[int] = wire.ids_array(delta.ids).tolist()
        bar.add_tokens(len(ids))
        answer.error = delta.error
        events, taken = reader.read(ids, delta.finish)
        answer.text.append(content_of(events))
        answer.ids += ids[:taken]
        answer.logprobs += delta.logprobs or ()
        if reader.finish is not None:
            break
    stream.abort("stop_string")
    finish = reader.finish
    return Completion(
        text="".join(answer.text),
        token_ids=answer.ids,
        finish_reason="length"
        if finish == "length"
        else "error"
        if finish in ("error", "cancelled")
        else "stop",
        prompt_tokens=stream.prompt_tokens,
        cached_tokens=stream.cached_tokens,
        logprobs=None if params.logprobs is None else answer.logprobs[: len(answer.ids)],
        error=answer.error,
    )


class _Bar:
    """A progress bar: prompts done, tokens per second."""

    def __init__(self, prompts: int, out: TextIO, shown: bool) -> None:
        self._prompts = prompts
        self._done = 0
        self._tokens = 0
        self._out = out
        self._shown = shown
        self._started_s = time.monotonic()
        self._drawn_s = 0.0

    def add_tokens(self, count: int) -> None:
        self._tokens += count
        if self._shown and time.monotonic() - self._drawn_s > _BAR_EVERY_S:
            self._draw()

    def finish_one(self) -> None:
        self._done += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._draw()
            print(file=self._out)

    def _draw(self) -> None:
        self._drawn_s = time.monotonic()
        filled = _BAR_CELLS * self._done // max(1, self._prompts)
        rate = self._tokens / max(1e-9, self._drawn_s - self._started_s)
        bar = "#" * filled + "-" * (_BAR_CELLS - filled)
        line = f"\r[{bar}] {self._done}/{self._prompts} prompts, {self._tokens} tokens, {rate:.1f} tokens/s "
        print(line, end="", file=self._out, flush=True)


def _refuse_server_options(options: dict[str, Any]) -> None:
    inert = {o.name for o in config.options() if o.branch == "server"} - {"log_level"}
    if named := sorted(inert & options.keys()):
        raise SetupError(f"{', '.join(named)}: only `tokenspeed serve` has a server; leave it out")


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    given = _listed(prompts, "prompts", "a text, a list of token ids, or a list of either")
    if given and isinstance(given[0], Integral):
        return [given]
    return [
        p if isinstance(p, str) else _listed(p, "a prompt", "a text or a list of token ids") for p in given
    ]


def _as_conversations(messages: Any) -> list[list[Any]]:
    """The conversations of `chat`. Raises RequestError for what is none."""
    wanted = 'a list of {"role": ..., "content": ...}'
    given = _listed(messages, "messages", f"{wanted}, or a list of such lists")
    if given and isinstance(given[0], dict):
        return [given]
    return [_listed(each, "a conversation", wanted) for each in given]


def _listed(value: Any, what: str, wanted: str) -> list[Any]:
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise RequestError(f"{what} must be {wanted}; got {type(value).__name__}", code="invalid_value")
    return list(value)
