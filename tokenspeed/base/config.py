# SPDX-License-Identifier: MIT
"""What an operator may set: composed frozen dataclasses from which CLI, help, docs and validation derive.

In: plain values. Out: an `EngineConfig`; every component sees its own branch only. `None` means "choose for me": the
choice and its reason appear in `resolve.Resolved`, never here. Values measured at start are not configuration either.
A field nobody consumes is a defect (a test walks the schema).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from tokenspeed.base.errors import SetupError


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    flag: str | None = None,
    unit: str | None = None,
) -> Any:
    """A configuration field: its default, one line of help, and the values it admits (bounds inclusive)."""
    meta = {"help": help, "choices": choices, "low": low, "high": high, "flag": flag, "unit": unit}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights are read."""

    model: str | None = option(None, "a local directory or a hub id; the bundled model when absent", flag="")
    tokenizer: str | None = option(None, "a directory to take the tokenizer from instead of the model's own")
    served_model_name: str | None = option(
        None, "the name clients use; the directory's or hub id's name when absent"
    )
    load_format: str = option(
        "auto",
        "auto reads safetensors; dummy makes seeded random weights of the true shapes",
        choices=("auto", "dummy"),
    )
    layers: int | None = option(None, "build only the first N layers (with --load-format dummy)", low=1)
    dtype: str = option(
        "auto",
        "the type of weights, activations and KV; auto takes the checkpoint's",
        choices=("auto", "bfloat16", "float32"),
    )
    quantization: str = option(
        "auto",
        "how weights are held: auto keeps a checkpoint's block-scaled fp8 where a GPU can, and decodes it elsewhere; "
        "fp8_block (GPU) and int8 (CPU) also round while loading; none decodes",
        choices=("auto", "none", "fp8_block", "int8"),
    )
    max_model_len: int | None = option(None, "longest prompt plus answer", low=16, unit="tokens")
    seed: int = option(0, "seed of dummy weights", low=0, high=2**63 - 1)
    tool_call_parser: str = option(
        "auto",
        "how the model writes tool calls: auto reads it off the chat template; none, or a dialect's name",
    )
    reasoning_parser: str = option(
        "auto",
        "how the model writes reasoning: auto reads it off the chat template; none, or a format's name",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The KV arena and the prefix tree over it."""

    block_tokens: int = option(64, "tokens per KV block", low=1, high=1024, unit="tokens")
    kv_cache_bytes: int | None = option(
        None, "size of the KV arena; chosen from free memory when absent", low=1, unit="bytes"
    )
    kv_dtype: str = option(
        "auto",
        "how the context is held: auto in the model's dtype, fp8 in 8 bits with a scale a vector",
        choices=("auto", "fp8"),
    )
    prefix_cache: bool = option(True, "reuse the KV of shared prefixes")
    kv_retention: bool = option(
        True, "keep idle KV by how soon its session is likely to come back, not by least recent use"
    )
    host_kv_bytes: int = option(
        0, "keep idle KV in so much host memory, too (pinned on a GPU); 0: none", low=0, unit="bytes"
    )
    disk_kv_dir: str | None = option(
        None, "keep idle KV in a file in this directory, too; it outlives the engine"
    )
    disk_kv_bytes: int = option(16 << 30, "size of that file, at most", low=1 << 20, unit="bytes")
    kv_integrity: str = option(
        "off",
        "stamp KV blocks and check them when they are reused: one in sixteen, or all",
        choices=("off", "sampled", "full"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Budgets of one step, and the bounds of the queues."""

    rows_max: int = option(64, "requests running at once", low=1, high=4096)
    prefill_tokens_max: int | None = option(
        None, "most prompt tokens computed in one step", low=1, unit="tokens"
    )
    waiting_max: int = option(1024, "requests waiting before new ones get 429", low=1)
    floor: float | None = option(
        None,
        "tokens per second promised to every answer that names no floor; 0 promises only what requests name, and "
        "without this option no floor is kept",
        low=0.0,
        high=100_000.0,
        unit="tps",
    )
    tenant_floor: tuple[str, ...] = option(
        (), "SALT=TPS: the floor of requests with this cache_salt (repeatable; needs --floor)"
    )
    session_admission: str = option(
        "auto",
        "admit sessions, not requests, to the KV there is; auto: on where several sessions of an agent fit",
        choices=("auto", "on", "off"),
    )
    door_max: int = option(
        64, "requests of sessions not yet admitted that are held before new ones get 429", low=1
    )
    session_aging_s: float = option(
        1800.0, "no session waits longer to be admitted", low=0.001, high=1e6, unit="seconds"
    )
    session_idle_s: float = option(
        600.0,
        "an admitted session that is idle for so long gives way to one that waits; mostly sooner, by what is seen of "
        "others",
        low=0.001,
        high=1e6,
        unit="seconds",
    )
    fair_share: bool = option(True, "order requests by what their tenants have used of the device")
    overlap: str = option(
        "auto", "launch step n+1 before step n is read; auto: on with a GPU", choices=("auto", "on", "off")
    )
    event_log: str | None = option(
        None, "write a journal of every scheduling event to this file, to replay or audit; holds no tokens"
    )
    event_log_bytes: int = option(
        1 << 30, "disk that the journal may take; older events leave it", low=1 << 16, unit="bytes"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Where the model runs."""

    device: str = option(
        "auto",
        "auto takes a GPU when there is one; null computes nothing and answers with pieces of the prompt (benchmarks)",
        choices=("auto", "cpu", "cuda", "null"),
    )
    threads: int | None = option(
        None, "CPU threads of the kernels; the cores this process may use when absent", low=1, high=1024
    )
    enforce_eager: bool = option(
        False, "launch every step's kernels one by one instead of replaying graphs (GPU)"
    )
    cuda_graph_rows_max: int | None = option(
        None, "replay steps of up to this many decoding requests as graphs (GPU)", low=1, high=4096
    )
    gpu_memory_share: float = option(
        0.95, "share of the GPU's memory that weights, steps and KV may fill", low=0.05, high=1.0
    )
    kernel: tuple[str, ...] = option(
        (), "OP=KERNEL: use this kernel for this op (repeatable); it must still meet its needs"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP front."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0 picks a free one", low=0, high=65535)
    api_key: str | None = option(None, "clients must send it (Bearer or x-api-key); also TOKENSPEED_API_KEY")
    insecure: bool = option(False, "allow listening beyond loopback without a key")
    body_bytes_max: int = option(32 << 20, "largest request body", low=1024, unit="bytes")
    allow_forced_output: bool = option(
        False, "honour forced_token_ids: say recorded answers instead of choosing (for benchmarks)"
    )
    log_requests: str | None = option(
        None, "write each request body to this directory, replayable (holds prompt text)"
    )
    otel_endpoint: str | None = option(
        None, "send spans of every request to this OTLP collector, as http://HOST:4318 (extra otel)"
    )
    log_level: str = option(
        "info", "least severe log record to print", choices=("debug", "info", "warning", "error")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The whole of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


@dataclass(frozen=True, slots=True)
class Option:
    """One settable field as CLI, docs and validation see it."""

    branch: str  # attribute of EngineConfig
    name: str
    flag: str  # "--block-tokens"; "" for the positional model
    type: type  # bool, int, float, str
    repeated: bool
    optional: bool
    default: Any
    help: str
    choices: tuple[str, ...] | None
    low: float | None
    high: float | None
    unit: str | None


def options() -> Iterator[Option]:
    """Every settable field, in declaration order."""
    for branch, branch_type in typing.get_type_hints(EngineConfig).items():
        hints = typing.get_type_hints(branch_type)
        for item in dataclasses.fields(branch_type):
            kind, optional, repeated = _plain_type(hints[item.name])
            meta = item.metadata
            flag = "--" + item.name.replace("_", "-") if meta["flag"] is None else meta["flag"]
            yield Option(
                branch, item.name, flag, kind, repeated, optional, item.default,
                meta["help"], meta["choices"], meta["low"], meta["high"], meta["unit"],
            )  # fmt: skip


def build(**values: Any) -> EngineConfig:
    """An `EngineConfig` from flat field names (they are unique over all branches); validates every value.

    Raises `SetupError` for an unknown name, a wrong type, a value out of range or not among the choices.
    """
    known = {o.name: o for o in options()}
    branches: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise SetupError(f"unknown option {name!r}; known: {', '.join(sorted(known))}")
        _check(known[name], value)
        branches.setdefault(known[name].branch, {})[name] = value
    hints = typing.get_type_hints(EngineConfig)
    return EngineConfig(**{branch: hints[branch](**fields) for branch, fields in branches.items()})


def _plain_type(hint: Any) -> tuple[type, bool, bool]:
    """(scalar type, may be None, is a tuple of them)."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        inner = next(a for a in get_args(hint) if a is not type(None))
        return inner, True, False
    if get_origin(hint) is tuple:
        return get_args(hint)[0], False, True
    return hint, False, False


def _check(opt: Option, value: Any) -> None:
    if value is None:
        if not opt.optional:
            raise SetupError(f"{opt.name} needs a value")
        return
    if opt.repeated and not isinstance(value, tuple):
        raise SetupError(f"{opt.name}: {value!r} is no tuple; give a tuple of values")
    items: tuple[Any, ...] = value if opt.repeated else (value,)
    for item in items:
        wanted = opt.type
        if not isinstance(item, wanted) or (wanted is int and isinstance(item, bool)):
            raise SetupError(f"{opt.name}: {item!r} is not of type {wanted.__name__}")
        if opt.choices and item not in opt.choices:
            raise SetupError(f"{opt.name}: {item!r} is none of {', '.join(opt.choices)}")
        if (opt.low is not None and item < opt.low) or (opt.high is not None and item > opt.high):
            bounds = f"at least {opt.low:g}" if opt.high is None else f"in {opt.low or 0:g}..{opt.high:g}"
            raise SetupError(f"{opt.name}: {item} is out of range; it must be {bounds}")
