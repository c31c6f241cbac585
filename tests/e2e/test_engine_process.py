# SPDX-License-Identifier: MIT
"""The engine as two processes: start and refusals, streams, aborts, deaths on either side, noise."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tokenspeed.base import config
from tokenspeed.base.errors import CapacityError, EngineDeadError, RequestError, SetupError
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.engine import front, wire
from tokenspeed.engine.boot import boot
from tokenspeed.engine.front import AsyncEngine, Stream

VOCAB = 160
CONTEXT = 2048
GREEDY = SamplingParams(temperature=0.0, tokens_max=16)
LONG = SamplingParams(temperature=0.0)  # as long as the context holds


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.2,
        )
    )
    path = tmp_path_factory.mktemp("llama")
    model.float().save_pretrained(path)
    return path


def _config(directory: Path, **options: Any) -> config.EngineConfig:
    defaults: dict[str, Any] = {"threads": 1, "kv_cache_bytes": 64 << 20, "rows_max": 8, "log_level": "error"}
    return config.build(model=str(directory), **{**defaults, **options})


class Shared:
    """One engine on a loop of its own, for tests that leave it as they found it."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._engine = self._loop.run_until_complete(AsyncEngine.start(_config(directory)))

    def run(self, work: Callable[[AsyncEngine], Awaitable[None]]) -> None:
        self._loop.run_until_complete(asyncio.wait_for(work(self._engine), 60))
        assert self._engine.requests_open == 0
        assert self._engine.healthy

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.stop())
        self._loop.close()


@pytest.fixture(scope="module")
def shared(directory: Path) -> Iterator[Shared]:
    made = Shared(directory)
    yield made
    made.close()


def _with_own_engine(directory: Path, work: Callable[[AsyncEngine], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        engine = await AsyncEngine.start(_config(directory, **options))
        try:
            await asyncio.wait_for(work(engine), 60)
        finally:
            await engine.stop()

    asyncio.run(run())


async def _read(stream: Stream) -> tuple[list[int], str | None]:
    ids: list[int] = []
    finish = None
    async for delta in stream:
        ids += wire.ids_array(delta.ids).tolist()
        finish = delta.finish
    return ids, finish


async def _statistics(engine: AsyncEngine, until: Callable[[wire.Stats], bool]) -> wire.Stats:
    """The first statistics made from now on for which `until` holds."""
    while True:
        before = engine.stats
        while engine.stats is before or engine.stats is None:
            await asyncio.sleep(0.005)
        if until(engine.stats):
            return engine.stats


def _gone(pid: int, timeout_s: float) -> bool:
    """Wait for the end of any process; needs no right over it."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ready, _, _ = select.select([descriptor], [], [], timeout_s)
    os.close(descriptor)
    return bool(ready)


def test_streams_run_side_by_side_and_end_once(shared: Shared) -> None:
    async def work(engine: AsyncEngine) -> None:
        random = np.random.default_rng(0)
        prompts = [random.integers(0, VOCAB, n).tolist() for n in (1, 30, 64, 200, 513, 1000)]
        alone = [await _read(engine.generate(prompt, GREEDY)) for prompt in prompts]
        together = await asyncio.gather(*(_read(engine.generate(prompt, GREEDY)) for prompt in prompts))
        assert together == alone
        assert all((len(ids), finish) == (16, "length") for ids, finish in alone)
        assert b'tokenspeed_requests_finished_total{reason="length"}' in engine.metrics.render()

    shared.run(work)


def test_usage_and_cache_are_told(shared: Shared) -> None:
    async def work(engine: AsyncEngine) -> None:
        prompt = list(range(100)) + list(range(60))
        first = engine.generate(prompt, GREEDY)
        await _read(first)
        second = engine.generate(prompt, GREEDY)
        await _read(second)
        other = engine.generate(prompt, GREEDY, salt=b"tenant")
        await _read(other)
        assert (first.prompt_tokens, first.output_tokens) == (160, 16)
        assert (first.cached_tokens, second.cached_tokens, other.cached_tokens) == (0, 128, 0)
        engine.flush_prefix()
        third = engine.generate(prompt, GREEDY)
        await _read(third)
        assert third.cached_tokens == 0

    shared.run(work)


def test_a_slow_reader_gets_everything_in_one_piece(shared: Shared) -> None:
    async def work(engine: AsyncEngine) -> None:
        several = SamplingParams(temperature=0.0, tokens_max=200)
        slow = engine.generate([1, 2, 3], several)
        quick = engine.generate([1, 2, 3], several)
        expected, _ = await _read(quick)
        while not slow.ended:
            await asyncio.sleep(0.005)
        deltas = [delta async for delta in slow]
        assert len(deltas) == 1
        assert wire.ids_array(deltas[0].ids).tolist() == expected
        assert len(expected) == 200

    shared.run(work)


def test_an_abort_reaches_the_core_and_frees_its_blocks(shared: Shared) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.generate([1, 2, 3], LONG) as stream:
            await anext(stream)
        assert stream.ended
        prefill = engine.generate([5] * 2000, LONG)
        prefill.abort()
        assert await _read(prefill) == ([], "cancelled")
        prefill.abort()
        stats = await _statistics(engine, lambda s: not s.core.running and not s.core.waiting)
        assert stats.core.blocks_free + stats.core.blocks_cached == stats.core.blocks_total
        assert b'tokenspeed_requests_aborted_total{reason="client"}' in engine.metrics.render()

    shared.run(work)


@pytest.mark.parametrize(
    ("ids", "sampling", "code"),
    [
        ([], GREEDY, "empty_prompt"),
        ([VOCAB], GREEDY, "invalid_value"),
        ([-1], GREEDY, "invalid_value"),
        ([1] * CONTEXT, GREEDY, "context_length_exceeded"),
        ([1], SamplingParams(top_p=2.0), "invalid_value"),
        ([1], SamplingParams(stop_ids=(VOCAB,)), "invalid_value"),
        ([1], SamplingParams(logit_bias={VOCAB: 1.0}), "invalid_value"),
    ],
)
def test_what_cannot_be_served_raises_before_any_work(
    shared: Shared, ids: list[int], sampling: SamplingParams, code: str
) -> None:
    async def work(engine: AsyncEngine) -> None:
        with pytest.raises(RequestError) as caught:
            engine.generate(ids, sampling)
        assert caught.value.code == code

    shared.run(work)


def test_more_streams_than_places_are_refused_with_a_wait(directory: Path) -> None:
    async def work(engine: AsyncEngine) -> None:
        streams = [engine.generate([1], LONG) for _ in range(engine.streams_max)]
        with pytest.raises(CapacityError) as caught:
            engine.generate([1], LONG)
        assert caught.value.retry_after_s >= 1
        for stream in streams:
            stream.abort()
        assert await _read(engine.generate([1], GREEDY)) == await _read(engine.generate([1], GREEDY))

    _with_own_engine(directory, work, rows_max=2, waiting_max=3)


def test_bytes_that_are_no_message_change_nothing(shared: Shared) -> None:
    async def work(engine: AsyncEngine) -> None:
        expected = await _read(engine.generate([1, 2, 3], GREEDY))
        core = engine._core  # pyright: ignore[reportPrivateUsage]
        good = wire.encode(wire.Generate(9, wire.ids_bytes(np.array([1])), GREEDY))
        bad_ids = wire.encode(wire.Generate(2**40, wire.ids_bytes(np.array([VOCAB + 1])), GREEDY))
        frames = [b"", b"\xc1", b"\x93\xa8generate", good[:-3], good[5:], bytes(300), bad_ids, b"\xff" * 4096]
        random = np.random.default_rng(0)
        frames += [random.bytes(int(size)) for size in random.integers(1, 200, 200)]
        for frame in frames:
            core._requests.send(frame)  # pyright: ignore[reportPrivateUsage]
        assert await _read(engine.generate([1, 2, 3], GREEDY)) == expected

    shared.run(work)


def test_a_killed_core_ends_every_stream_with_the_typed_error(directory: Path) -> None:
    async def work(engine: AsyncEngine) -> None:
        streams = [engine.generate([i], LONG) for i in range(12)]  # more than run at once
        await anext(streams[0])
        os.kill(engine.ready.pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await _read(stream)
        assert not engine.healthy
        with pytest.raises(EngineDeadError):
            engine.generate([1], GREEDY)

    _with_own_engine(directory, work)


def test_a_core_that_hangs_is_not_healthy(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "HEALTH_S", 1.0)

    async def work(engine: AsyncEngine) -> None:
        os.kill(engine.ready.pid, signal.SIGSTOP)
        try:
            while engine.healthy:
                await asyncio.sleep(0.01)
        finally:
            os.kill(engine.ready.pid, signal.SIGCONT)
        while not engine.healthy:
            await asyncio.sleep(0.01)
        assert (await _read(engine.generate([1], GREEDY)))[1] == "length"

    shared.run(work)


def test_the_signals_of_a_terminal_do_not_end_the_core(shared: Shared) -> None:
    async def work(engine: AsyncEngine) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.ready.pid, number)
        assert (await _read(engine.generate([1], GREEDY)))[1] == "length"

    shared.run(work)


def test_stop_ends_streams_and_the_process(directory: Path) -> None:
    async def run() -> int:
        engine = await AsyncEngine.start(_config(directory))
        stream = engine.generate([1], LONG)
        await engine.stop()
        assert (await _read(stream))[1] == "cancelled"
        with pytest.raises(EngineDeadError):
            engine.generate([1], GREEDY)
        await engine.stop()
        return engine.ready.pid

    assert _gone(asyncio.run(run()), 0)


def test_drain_waits_for_open_streams(shared: Shared) -> None:
    async def work(engine: AsyncEngine) -> None:
        assert await engine.drain(0)
        stream = engine.generate([1], GREEDY)
        assert await engine.drain(60)
        assert stream.ended
        stream = engine.generate([1], LONG)
        assert not await engine.drain(0)
        stream.abort()

    shared.run(work)


def test_a_core_does_not_outlive_its_front(directory: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from tokenspeed.base import config\n"
        "from tokenspeed.engine.front import AsyncEngine\n"
        "async def main():\n"
        f"    engine = await AsyncEngine.start(config.build(model={str(directory)!r}, threads=1,"
        " kv_cache_bytes=1 << 24))\n"
        "    print(engine.ready.pid, engine._core._directory, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    pid, home = done.stdout.split()
    assert _gone(int(pid), 30)
    assert not Path(home).exists()


def test_the_front_never_loads_torch() -> None:
    script = (
        "import sys, tokenspeed.llm; sys.exit(bool({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_bytes": 1000}, "--kv-cache-bytes"),
        ({"max_model_len": 10_000_000}, "2048"),
        ({"layers": 1}, "--load-format dummy"),
        ({"kernel": ("attention.gqa_decode=nonsense",)}, "nonsense"),
    ],
)
def test_what_cannot_start_says_why(directory: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        boot(_config(directory, **options))


def test_a_model_that_is_not_one_says_what_it_lacks(directory: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for model, message in (
        (str(broken), "config.json"),
        (str(tmp_path / "absent"), "hub id"),
        ("a/b/c", "hub id"),
    ):
        with pytest.raises(SetupError, match=message):
            boot(config.build(model=model))
    (broken / "config.json").write_text('{"architectures": ["GPT5ForCausalLM"]}')
    with pytest.raises(SetupError, match="LlamaForCausalLM"):
        boot(config.build(model=str(broken)))
    (broken / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(SetupError, match="safetensors"):
        boot(config.build(model=str(broken)))


def test_a_refusal_of_the_core_reaches_the_front(directory: Path) -> None:
    with pytest.raises(SetupError, match="--kv-cache-bytes"):
        asyncio.run(AsyncEngine.start(_config(directory, kv_cache_bytes=1000)))
