# SPDX-License-Identifier: MIT
"""From a configuration to a core that can run: one way, each part built from those before it.

    config -> device -> model (no memory yet) -> does it fit? -> weights -> kernels compiled -> what a step takes
           -> free memory -> Resolved -> arena -> executor -> graphs -> Scheduler, last

In: an `EngineConfig`. Out: a `Core`; or `SetupError`. Used by the core process, and in-process by tests and
benchmarks. A core process has its kernels compiled by processes of their own (`engine.compilers`) while weights are
read, and then finds them in Triton's cache. With `--device null` there are no weights and no arena, and the
executor computes nothing.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from tokenspeed import kernels, models, weights
from tokenspeed.base.config import EngineConfig, ModelConfig
from tokenspeed.base.errors import SetupError
from tokenspeed.base.log import get_logger
from tokenspeed.base.resolve import (
    Choice,
    DeviceFacts,
    ModelFacts,
    Resolved,
    resolve,
    resolve_dtype,
    resolve_graphs,
    resolve_held,
    resolve_threads,
)
from tokenspeed.control import Scheduler, SchedulerOptions
from tokenspeed.engine import source, wire
from tokenspeed.engine.storage import Storage, open_storage
from tokenspeed.exec import facts, graphs, probe, rehearsal
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.batch import Batch, BatchLimits
from tokenspeed.exec.executor import DeviceExecutor
from tokenspeed.exec.null import NullExecutor
from tokenspeed.exec.protocol import Executor
from tokenspeed.kernels.compiling import ALL, Share
from tokenspeed.sampling import Sampler

_log = get_logger("engine")
FP8_SM: Final[tuple[int, int]] = (8, 9)
"""GPUs from this compute capability on convert and multiply 8-bit floats."""
NULL_DEVICE: Final = DeviceFacts(
    "null", "no device", cores=1, memory_total_bytes=1 << 50, memory_available_bytes=1 << 50
)


@dataclass(frozen=True, slots=True)
class Core:
    """Everything a loop needs."""

    resolved: Resolved
    device: str
    """What it runs on, in words."""
    model: models.Facts
    scheduler: Scheduler
    executor: Executor

    @property
    def ready(self) -> wire.Ready:
        """What the front is told."""
        resolved = self.resolved
        return wire.Ready(
            pid=os.getpid(),
            device=self.device,
            vocab_size=self.model.vocab,
            context_tokens_max=resolved.context_tokens_max,
            block_tokens=resolved.block_tokens,
            blocks_total=resolved.blocks_total,
            slots_max=resolved.slots_max,
            waiting_max=resolved.waiting_max,
            overlap=resolved.overlap,
            choices=list(resolved.choices),
        )


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What is known before anything takes memory."""

    config: EngineConfig
    directory: Path
    hf_config: dict[str, Any]
    device: torch.device
    found: DeviceFacts
    threads: int
    graph_rows_max: int
    model: models.Model
    """Without memory."""
    about: ModelFacts
    resolved: Resolved
    """As if all that the device has free were free still."""

    def shorter(self, layers: int) -> models.Model:
        """The model with no more than so many layers."""
        return _build(self.config, _with_layers(self.hf_config, layers), self.device, self.threads)


def draw(config: EngineConfig) -> Blueprint:
    """Look at the checkpoint and the device; `SetupError` where the one is not for the other."""
    directory = source.locate(config.model.model)
    hf_config = _read_config(directory, config.model)
    device = facts.choose_device(config.device.device)
    found = facts.measure(device)
    threads, _ = resolve_threads(config.device, found.cores)
    graph_rows_max, _ = resolve_graphs(config, found)
    model = _build(config, hf_config, device, threads)
    _, _, held = _held(config, hf_config, device)
    about = dataclasses.replace(_model_facts(model, hf_config, config.model), choices=held)
    resolved = resolve(config, found, about)  # refuse what cannot fit before reading it
    return Blueprint(
        config, directory, hf_config, device, found, threads, graph_rows_max, model, about, resolved
    )


def boot(config: EngineConfig, compiled: Callable[[], None] | None = None) -> Core:
    """Build a core; `SetupError` says what is wrong and what would work.

    `compiled` returns when those who compile kernels meanwhile are done, and is called once weights are there.
    """
    if config.device.device == "null":
        return _boot_null(config)
    laps = _Laps()
    try:
        blueprint = draw(config)
    except SetupError:
        if compiled is None:
            raise
        compiled()  # what they took for a moment may be what was missing
        blueprint = draw(config)
    device, model, found = blueprint.device, blueprint.model, blueprint.found
    torch.set_num_threads(blueprint.threads)
    laps.end("model")
    _load(model, blueprint.directory, config.model)
    laps.end("weights")
    if compiled is not None:
        compiled()
    if device.type == "cuda":
        compile_kernels(blueprint)
        laps.end("kernels")
    torch.set_num_threads(_torch_threads(config, model, blueprint.threads))
    about = dataclasses.replace(blueprint.about, weight_bytes=0)
    resolved = resolve(config, facts.measure(device), about)
    if device.type == "cuda":
        measured = probe.step_bytes(model, _limits(resolved), graph_rows_max=blueprint.graph_rows_max)
        resolved = resolve(config, facts.measure(device), dataclasses.replace(about, step_bytes=measured))
        laps.end("largest step")
    arena = Arena(
        model.kv_spec,
        blocks=resolved.blocks_total,
        block_tokens=resolved.block_tokens,
        dtype=model.dtype,
        device=device,
    )
    limits = _limits(resolved)
    sampler = Sampler(slots=limits.slots, vocab=model.facts.vocab, device=device)
    storage = open_storage(config, blueprint.directory, arena)
    batch = Batch(limits, device)
    executor = DeviceExecutor(model, arena, batch, sampler, stamps=storage.stamps, mover=storage.mover)
    laps.end("KV")
    if blueprint.graph_rows_max:
        resolved = _record_graphs(executor, device, blueprint.graph_rows_max, resolved)
        laps.end("graphs")
    scheduler = Scheduler(_scheduler_options(config, resolved, storage))
    storage.hand_over(scheduler)
    _log.info("booted in %s", laps)
    return Core(resolved, f"{found.type}: {found.name}", model.facts, scheduler, executor)


class _Laps:
    """What a start took, part by part."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, float]] = []
        self._begun_s = self._last_s = time.monotonic()

    def end(self, part: str) -> None:
        """What went on until now was this."""
        now_s = time.monotonic()
        self._parts.append((part, now_s - self._last_s))
        self._last_s = now_s

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts)
        return f"{self._last_s - self._begun_s:.1f} s: {parts}"


def _build(
    config: EngineConfig, hf_config: dict[str, Any], device: torch.device, threads: int
) -> models.Model:
    quantization, kv_format, _ = _held(config, hf_config, device)
    with kernels.overriding(*config.device.kernel):
        return models.build(
            hf_config,
            dtype=resolve_dtype(config.model, models.checkpoint_dtype(hf_config))[0],
            device=_described(device, threads),
            quantization=quantization,
            kv_format=kv_format,
            block_tokens=config.cache.block_tokens,
            context_tokens=config.model.max_model_len,
        )


def _held(
    config: EngineConfig, hf_config: dict[str, Any], device: torch.device
) -> tuple[str | None, str, tuple[Choice, ...]]:
    sm = kernels.describe(device).sm
    able = sm is not None and sm >= FP8_SM
    return resolve_held(config, stored_fp8=models.is_fp8_block(hf_config), able_fp8=able)


def _limits(resolved: Resolved) -> BatchLimits:
    return BatchLimits(
        slots=resolved.slots_max,
        rows=resolved.slots_max,
        tokens=resolved.tokens_per_step_max,
        context_tokens=resolved.context_tokens_max,
        block_tokens=resolved.block_tokens,
    )


def compile_kernels(blueprint: Blueprint, share: Share = ALL) -> None:
    """Compile a GPU's kernels side by side, or a share of them; takes a little of its memory until it returns."""
    started = time.monotonic()
    try:
        count = rehearsal.compile_kernels(
            blueprint.model,
            blueprint.shorter,
            _limits(blueprint.resolved),
            rows_max=blueprint.graph_rows_max or blueprint.resolved.slots_max,
            threads=max(1, blueprint.threads // share.count),
            share=share,
        )
        _log.info("kernels: 1/%d of %d compiled in %.1f s", share.count, count, time.monotonic() - started)
    except Exception as error:  # noqa: BLE001 - whatever it is: the step that meets it again will say so
        _log.warning("kernels are compiled as steps need them: %s: %s", type(error).__name__, error)
    torch.cuda.empty_cache()


def _record_graphs(
    executor: DeviceExecutor, device: torch.device, rows_max: int, resolved: Resolved
) -> Resolved:
    """Record decode steps; where that cannot be, run without and say why."""
    started = time.monotonic()
    try:
        sizes = executor.record(graphs.GraphRecorder(device), graphs.sizes_up_to(rows_max)).sizes
    except graphs.WaitsError as error:
        reason = f"a kernel waits for the device: {error}"
        _log.warning("decode steps cannot be replayed as graphs: %s", reason)
        kept = tuple(choice for choice in resolved.choices if choice.name != "graphs")
        return dataclasses.replace(resolved, choices=(*kept, Choice("graphs", "off", reason)))
    _log.info("graphs: %d sizes up to %d rows in %.1f s", len(sizes), rows_max, time.monotonic() - started)
    return resolved


def _boot_null(config: EngineConfig) -> Core:
    """The control plane as it is, around an executor that computes nothing.

    The model says its vocabulary and nothing else: KV is counted at a byte a token, and a context longer than
    the model's is granted, for no position is ever encoded.
    """
    hf_config = _read_config(source.locate(config.model.model), config.model)
    model = models.build(hf_config, block_tokens=config.cache.block_tokens)
    about = _model_facts(model, hf_config, config.model)
    context_tokens = max(about.context_tokens_max, config.model.max_model_len or 0)
    about = dataclasses.replace(
        about, context_tokens_max=context_tokens, kv_bytes_per_token=1, weight_bytes=0
    )
    resolved = resolve(config, NULL_DEVICE, about)
    warned = Choice(
        "device", "null", "COMPUTES NOTHING: answers are pieces of the prompt, for benchmarks only"
    )
    resolved = dataclasses.replace(resolved, choices=(warned, *resolved.choices))
    _log.warning("--device null computes nothing: every answer is a piece of its prompt")
    executor = NullExecutor(slots=resolved.slots_max)
    scheduler = Scheduler(_scheduler_options(config, resolved))
    return Core(resolved, "null: computes nothing", model.facts, scheduler, executor)


def _described(device: torch.device, threads: int) -> kernels.Device:
    """The device as kernels see it: a CPU has the cores it may use, a GPU its own, not those of its host."""
    facts = kernels.describe(device)
    return dataclasses.replace(facts, cores=threads) if device.type == "cpu" else facts


def _read_config(directory: Path, config: ModelConfig) -> dict[str, Any]:
    hf_config = models.read_config(directory)
    if config.layers is not None:
        if config.load_format != "dummy":
            raise SetupError("--layers builds a model that no checkpoint has; it needs --load-format dummy")
        return _with_layers(hf_config, config.layers)
    return hf_config


def _with_layers(hf_config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The config of a model of no more than so many layers."""
    shorter = dict(hf_config)
    if hf_config.get("text_config"):
        shorter["text_config"] = _with_layers(hf_config["text_config"], layers)
    if "num_hidden_layers" in hf_config:
        shorter["num_hidden_layers"] = min(layers, hf_config["num_hidden_layers"])
    return shorter


def _model_facts(model: models.Model, hf_config: dict[str, Any], config: ModelConfig) -> ModelFacts:
    weight_bytes = model.facts.parameter_bytes
    rounded = config.quantization == "int8" or (
        config.quantization == "fp8_block" and not models.is_fp8_block(hf_config)
    )
    return ModelFacts(
        name=config.served_model_name or model.facts.architecture,
        dtype=models.checkpoint_dtype(hf_config),
        context_tokens_max=model.facts.context_tokens,
        vocab_size=model.facts.vocab,
        kv_bytes_per_token=model.facts.kv_bytes_per_token,
        weight_bytes=weight_bytes // model.dtype.itemsize if rounded else weight_bytes,
    )


def _load(model: models.Model, directory: Path, config: ModelConfig) -> None:
    started = time.monotonic()
    if config.load_format == "dummy":
        loaded = weights.load_dummy(model, seed=config.seed)
    else:
        loaded = weights.load(model, directory)
    _log.info("weights: %.2f GiB in %.1f s", loaded.parameter_bytes / 2**30, time.monotonic() - started)


def _torch_threads(config: EngineConfig, model: models.Model, threads: int) -> int:
    """One, where kernels bring threads of their own: torch's idle workers spin too, on their cores."""
    with kernels.overriding(*config.device.kernel):
        device = kernels.describe(model.device)
        sample = kernels.bind("norm.rms", device, dtype=model.dtype, width=model.facts.width)
    return threads if sample.choice.kernel.name == "ref" else 1


def _scheduler_options(
    config: EngineConfig, resolved: Resolved, storage: Storage | None = None
) -> SchedulerOptions:
    scheduling = config.scheduler
    return SchedulerOptions(
        blocks_total=resolved.blocks_total,
        block_tokens=resolved.block_tokens,
        slots_max=resolved.slots_max,
        tokens_per_step_max=resolved.tokens_per_step_max,
        rows_per_step_max=resolved.slots_max,
        prefill_tokens_max=resolved.prefill_tokens_max,
        # The front admits waiting_max beside those that run; all of them at once wait for a step. So the core
        # never refuses what the front admitted, and 429 is answered before any work.
        waiting_max=resolved.waiting_max + resolved.slots_max,
        context_tokens_max=resolved.context_tokens_max,
        prefix_cache=config.cache.prefix_cache,
        overlap=resolved.overlap,
        floor=scheduling.floor is not None,
        floor_mtps=round(1000 * (scheduling.floor or 0.0)),
        session_admission=resolved.session_admission,
        fair_share=scheduling.fair_share,
        door_max=scheduling.door_max,
        session_aging_us=round(1e6 * scheduling.session_aging_s),
        session_idle_us=round(1e6 * scheduling.session_idle_s),
        hash_key=secrets.token_bytes(16) if storage is None else storage.hash_key,
        retention=config.cache.kv_retention,
        tiers=storage is not None and storage.mover is not None,
        host_blocks=0 if storage is None else storage.host_blocks,
        disk_blocks=0 if storage is None else storage.disk_blocks,
        stamps=storage is not None and storage.stamps is not None,
        seed=config.model.seed,
        journal=config.scheduler.event_log is not None,
    )
