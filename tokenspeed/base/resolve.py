# SPDX-License-Identifier: MIT
"""From what was asked to what will be: every value left open is chosen here, each with its reason.

In: the configuration, facts of the device (free memory is measured after the weights are in), facts of the
model. Out: `Resolved`. Pure: looks at no machine and no file, so a choice for any machine can be asked for
and tested. What cannot work raises `SetupError` with the numbers and what would work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from tokenspeed.base.config import DeviceConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenspeed.base.errors import SetupError

GIB: Final = 1 << 30
CPU_KV_SHARE: Final = 0.25  # of free memory: a laptop is used for other things too
CPU_KV_SHARE_MOST: Final = 0.5  # if that is what one full context takes
CPU_KV_BYTES_MAX: Final = 8 * GIB
CONTEXTS_MAX: Final = 16  # on a CPU an arena of more full contexts is not chosen, only asked for
CONTEXT_TOKENS_LEAST: Final = 256
# cpu: a step stays within about half a second
PREFILL_TOKENS: Final = {"cpu": 512, "cuda": 8192, "null": 8192}
SESSION_TOKENS: Final = 70_000  # of a coding agent, on average over its turns
SESSIONS_LEAST: Final = 4
DTYPE_BYTES: Final = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What was found."""

    type: str
    """cpu, cuda or null."""
    name: str
    cores: int
    """CPU cores this process may use."""
    memory_total_bytes: int
    memory_available_bytes: int
    """Free now, for weights still to come and for KV."""


class Choice(NamedTuple):
    """One decision, for the startup banner."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the checkpoint says."""

    name: str
    dtype: str
    """In which the checkpoint is written, as it spells it."""
    context_tokens_max: int
    vocab_size: int
    kv_bytes_per_token: int
    """Over all layers, in the chosen dtype."""
    weight_bytes: int
    """Still to be loaded; 0 once they are in."""
    step_bytes: int = 0
    """What steps and their graphs take on a GPU beside weights and KV; 0 before it is measured."""
    choices: tuple[Choice, ...] = ()
    """What had to be chosen before the model could be built."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """All that was chosen."""

    dtype: str
    threads: int
    overlap: bool
    context_tokens_max: int
    block_tokens: int
    blocks_total: int
    slots_max: int
    waiting_max: int
    prefill_tokens_max: int
    tokens_per_step_max: int
    session_admission: bool
    choices: tuple[Choice, ...]

    @property
    def kv_tokens(self) -> int:
        """Tokens the arena holds."""
        return self.blocks_total * self.block_tokens


def resolve(config: EngineConfig, device: DeviceFacts, model: ModelFacts) -> Resolved:
    """Decide everything, or raise `SetupError`."""
    dtype, dtype_choice = resolve_dtype(config.model, model.dtype)
    threads, threads_choice = resolve_threads(config.device, device.cores)
    overlap, overlap_choice = _resolve_overlap(config.scheduler, device)
    _, graphs_choice = resolve_graphs(config, device)
    prefill_tokens, prefill_choice = _resolve_prefill(config.scheduler, device)
    wanted, wanted_choice = _wanted_context(config.model, model)
    blocks, context, memory_choices = _resolve_memory(config, device, model, wanted)
    slots = config.scheduler.rows_max
    sessions, sessions_choice = _resolve_sessions(config.scheduler, blocks * config.cache.block_tokens)
    return Resolved(
        dtype=dtype,
        threads=threads,
        overlap=overlap,
        context_tokens_max=context,
        block_tokens=config.cache.block_tokens,
        blocks_total=blocks,
        slots_max=slots,
        waiting_max=config.scheduler.waiting_max,
        prefill_tokens_max=prefill_tokens,
        tokens_per_step_max=prefill_tokens + slots,
        session_admission=sessions,
        choices=(
            dtype_choice,
            *model.choices,
            threads_choice,
            *([wanted_choice] if context == wanted else []),
            *memory_choices,
            prefill_choice,
            overlap_choice,
            sessions_choice,
            *([graphs_choice] if device.type == "cuda" else []),
        ),
    )


def resolve_dtype(config: ModelConfig, checkpoint_dtype: str) -> tuple[str, Choice]:
    """The type of weights, activations and KV; needed before the model can be built."""
    if config.dtype != "auto":
        return config.dtype, Choice("dtype", config.dtype, "asked for")
    if checkpoint_dtype in DTYPE_BYTES:
        return checkpoint_dtype, Choice("dtype", checkpoint_dtype, "the checkpoint's")
    reason = f"the checkpoint is written in {checkpoint_dtype}, which is not computed in"
    return "bfloat16", Choice("dtype", "bfloat16", reason)


def resolve_held(
    config: EngineConfig, *, stored_fp8: bool, able_fp8: bool
) -> tuple[str | None, str, tuple[Choice, ...]]:
    """(format of weights, format of the context, what was chosen); needed before the model can be built.

    `stored_fp8`: the checkpoint has block-scaled fp8 weights; `able_fp8`: the device multiplies by them.
    """
    asked, choices = config.model.quantization, []
    quantization = None if asked in ("auto", "none") else asked
    if asked == "auto" and stored_fp8:
        quantization = "fp8_block" if able_fp8 else None
        reason = "as the checkpoint has them" if able_fp8 else "the device does not multiply by 8-bit floats"
        choices.append(Choice("weights", quantization or "decoded", reason))
    elif asked != "auto":
        choices.append(Choice("weights", quantization or "decoded", "asked for"))
    kv_format = "native" if config.cache.kv_dtype == "auto" else config.cache.kv_dtype
    if kv_format != "native":
        choices.append(Choice("KV dtype", kv_format, "asked for"))
    return quantization, kv_format, tuple(choices)


def resolve_threads(config: DeviceConfig, cores: int) -> tuple[int, Choice]:
    """CPU threads of the kernels; needed before weights are packed."""
    if config.threads is not None:
        return config.threads, Choice("threads", str(config.threads), "asked for")
    return cores, Choice("threads", str(cores), "the cores this process may use")


def resolve_graphs(config: EngineConfig, device: DeviceFacts) -> tuple[int, Choice]:
    """Decode steps of up to how many rows are replayed as graphs, 0 for none; needed to measure a step."""
    if device.type != "cuda" or config.device.enforce_eager:
        return 0, Choice("graphs", "off", "asked for" if config.device.enforce_eager else "no GPU")
    rows, asked = config.scheduler.rows_max, config.device.cuda_graph_rows_max
    if asked is not None and asked < rows:
        return asked, Choice("graphs", f"decode up to {asked} rows", "asked for")
    return rows, Choice("graphs", f"decode up to {rows} rows", "all that may run at once")


def _resolve_sessions(config: SchedulerConfig, kv_tokens: int) -> tuple[bool, Choice]:
    if config.session_admission != "auto":
        return config.session_admission == "on", Choice(
            "session admission", config.session_admission, "asked for"
        )
    several = kv_tokens >= SESSIONS_LEAST * SESSION_TOKENS
    reason = f"the KV cache holds {kv_tokens / SESSION_TOKENS:.1f} sessions of {SESSION_TOKENS} tokens"
    return several, Choice("session admission", "on" if several else "off", reason)


def _resolve_overlap(config: SchedulerConfig, device: DeviceFacts) -> tuple[bool, Choice]:
    if config.overlap != "auto":
        return config.overlap == "on", Choice("overlap", config.overlap, "asked for")
    if device.type != "cpu":
        return True, Choice("overlap", "on", "the device runs while the next step is planned")
    return False, Choice(
        "overlap", "off", "on a CPU a step runs where it is launched, so there is nothing to hide"
    )


def _resolve_prefill(config: SchedulerConfig, device: DeviceFacts) -> tuple[int, Choice]:
    if config.prefill_tokens_max is not None:
        return config.prefill_tokens_max, Choice(
            "prefill chunk", f"{config.prefill_tokens_max} tokens", "asked for"
        )
    tokens = PREFILL_TOKENS[device.type]
    return tokens, Choice(
        "prefill chunk", f"{tokens} tokens", "keeps a step short enough for those that decode"
    )


def _wanted_context(config: ModelConfig, model: ModelFacts) -> tuple[int, Choice]:
    most = model.context_tokens_max
    if config.max_model_len is None:
        return most, Choice("max_model_len", f"{most} tokens", "the model's context")
    if config.max_model_len > most:
        raise SetupError(
            f"max_model_len is {config.max_model_len} tokens, but {model.name} was made for {most}; "
            f"give at most {most}"
        )
    return config.max_model_len, Choice("max_model_len", f"{config.max_model_len} tokens", "asked for")


def _resolve_memory(
    config: EngineConfig, device: DeviceFacts, model: ModelFacts, wanted: int
) -> tuple[int, int, list[Choice]]:
    """(blocks, context tokens, choices) that fit in memory."""
    cache = config.cache
    free = device.memory_available_bytes - model.weight_bytes - model.step_bytes
    if free <= 0:
        raise SetupError(
            f"{model.name} needs {_gib(model.weight_bytes)} for its weights, but {device.name} has "
            f"{_gib(device.memory_available_bytes)} free; free memory, take a smaller model, or load with "
            "--quantization int8"
        )
    block_bytes = cache.block_tokens * model.kv_bytes_per_token
    budget, reason = _kv_budget(config, device, free, wanted, model)
    blocks = budget // block_bytes
    needed = -(-wanted // cache.block_tokens)
    held = blocks * cache.block_tokens
    if held < min(CONTEXT_TOKENS_LEAST, wanted):
        least = -(-min(CONTEXT_TOKENS_LEAST, wanted) // cache.block_tokens) * block_bytes
        raise SetupError(
            f"the KV cache ({reason}) would be {_gib(budget)} and hold {held} tokens; {model.name} takes "
            f"{model.kv_bytes_per_token} bytes a token: give --kv-cache-bytes {least} or more, or free memory"
        )
    if blocks < needed and config.model.max_model_len is not None:
        raise SetupError(
            f"the KV of one context of {wanted} tokens takes {_gib(needed * block_bytes)}, but the KV cache "
            f"({reason}) is {_gib(budget)}, which holds {held}; give --max-model-len {held} or less, "
            f"--kv-cache-bytes {needed * block_bytes} or more, or free memory"
        )
    choices = [
        Choice(
            "KV cache",
            f"{_gib(blocks * block_bytes)}, {blocks} blocks of {cache.block_tokens} tokens",
            reason,
        )
    ]
    if blocks < needed:
        choices.insert(
            0, Choice("max_model_len", f"{held} tokens", f"all the KV cache holds; the model's is {wanted}")
        )
        return blocks, held, choices
    return blocks, wanted, choices


def _kv_budget(
    config: EngineConfig, device: DeviceFacts, free: int, wanted: int, model: ModelFacts
) -> tuple[int, str]:
    """(bytes, why)."""
    cache, share = config.cache, config.device.gpu_memory_share
    one_context = -(-wanted // cache.block_tokens) * cache.block_tokens * model.kv_bytes_per_token
    if cache.kv_cache_bytes is not None:
        if cache.kv_cache_bytes > free:
            raise SetupError(
                f"kv_cache_bytes asks for {_gib(cache.kv_cache_bytes)}, but {device.name} has {_gib(free)} "
                f"left beside the weights; give at most {free}"
            )
        return cache.kv_cache_bytes, "asked for"
    if device.type == "cuda":
        kept = round((1 - share) * device.memory_total_bytes)
        reason = f"{share:.0%} of {_gib(device.memory_total_bytes)} less weights and steps"
        return max(0, free - kept), f"{reason} ({_gib(model.step_bytes)})" if model.step_bytes else reason
    most = CONTEXTS_MAX * one_context
    share = min(int(CPU_KV_SHARE * free), CPU_KV_BYTES_MAX)
    if most <= share:
        return most, f"{CONTEXTS_MAX} full contexts"
    if share < one_context:
        bound = min(one_context, int(CPU_KV_SHARE_MOST * free))
        if bound > share:
            return bound, f"one full context, within {CPU_KV_SHARE_MOST:.0%} of {_gib(free)} free memory"
    return share, f"{CPU_KV_SHARE:.0%} of {_gib(free)} free memory, at most {_gib(CPU_KV_BYTES_MAX)}"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
