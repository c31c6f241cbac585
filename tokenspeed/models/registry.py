# SPDX-License-Identifier: MIT
"""Which architectures there are, and how a config becomes a model. A family is one file and one row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from tokenspeed import kernels
from tokenspeed.base.errors import SetupError
from tokenspeed.dist.mesh import Mesh
from tokenspeed.layers.layer import FP8_BLOCK, Build
from tokenspeed.models import deepseek, llama, qwen3_moe
from tokenspeed.models.model import Family, Model
from tokenspeed.spmd.program import Collectives
from tokenspeed.weights.formats import BlockFp8, parse_format

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ARCHITECTURES: Final[dict[str, Callable[[Mapping[str, Any], Build, int | None], Family]]] = {
    "LlamaForCausalLM": llama.family,
    "Qwen2ForCausalLM": llama.family,
    "Qwen3ForCausalLM": llama.family,
    "Qwen3MoeForCausalLM": qwen3_moe.family,
    "DeepseekV2ForCausalLM": deepseek.family,
    "DeepseekV3ForCausalLM": deepseek.family,
    "KimiK25ForConditionalGeneration": deepseek.family_of_text,
}


def read_config(directory: Path | str) -> dict[str, Any]:
    """Read `config.json` of a directory; `generation_config.json`, if any, goes under its own key."""
    path = Path(directory) / "config.json"
    config = _read_json(path)
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        config["generation_config"] = _read_json(generation)
    return config


def build(
    hf_config: Mapping[str, Any],
    *,
    mesh: Mesh | None = None,
    dtype: torch.dtype | str | None = None,
    device: kernels.Device | torch.device | str = "cpu",
    quantization: str | None = None,
    kv_format: str = "native",
    block_tokens: int = 64,
    context_tokens: int | None = None,
    collectives: Collectives | None = None,
) -> Model:
    """Build the model that `hf_config` describes, without memory; `weights.load` then fills it.

    dtype: torch dtype or name; None takes the checkpoint's. device: a place, or facts of one (fewer cores
    than it has, say). quantization: None to decode weights, or "int8" or "fp8_block" to hold dense and expert
    weights in 8 bits: as they are where the checkpoint has them block-scaled, else rounded as they come.
    kv_format: "native" or "fp8", how the context is held. block_tokens: P of the arenas it will run on.
    context_tokens: longest context wanted, at most the model's own.
    collectives: what a mesh of several ranks moves data with; needed to run, not to build. Raises SetupError
    for architectures, fields and meshes that are not supported, naming them.
    """
    architecture = architecture_of(hf_config)
    text = hf_config.get("text_config") or hf_config
    if quantization not in (None, "int8", "fp8_block"):
        raise SetupError(
            f"quantization {quantization!r} is not a load option; supported: int8, fp8_block, or none"
        )
    stored = hf_config.get("quantization_config") or text.get("quantization_config")
    setting = Build(
        mesh=mesh or Mesh(),
        dtype=_dtype(dtype, hf_config),
        device=device if isinstance(device, kernels.Device) else kernels.describe(device),
        block_tokens=block_tokens,
        format=quantization or "native",
        encoded=is_fp8_block(hf_config),
        kv=kv_format,
    )
    return Model(
        ARCHITECTURES[architecture](hf_config, setting, context_tokens),
        setting,
        architecture=architecture,
        eos_ids=_eos_ids(hf_config),
        collectives=collectives,
        quantization_config=stored,
    )


def is_fp8_block(hf_config: Mapping[str, Any]) -> bool:
    """Say whether a config's checkpoint has weights in the format "fp8_block"."""
    text = hf_config.get("text_config") or {}
    stored = hf_config.get("quantization_config") or text.get("quantization_config") or {}
    if stored.get("quant_method") != "fp8":  # what else there is, is for the loader to refuse
        return False
    return parse_format(stored) == BlockFp8(FP8_BLOCK, FP8_BLOCK)


def architecture_of(hf_config: Mapping[str, Any]) -> str:
    """The first supported architecture a config names. Raises SetupError that lists what is supported."""
    named = [str(name) for name in hf_config.get("architectures") or ()]
    for name in named:
        if name in ARCHITECTURES:
            return name
    what = f"architecture {', '.join(named)}" if named else "a config.json that names no architecture"
    raise SetupError(f"{what} is not supported; supported: {', '.join(ARCHITECTURES)}")


def checkpoint_dtype(hf_config: Mapping[str, Any]) -> str:
    """The dtype a config says its checkpoint is written in; bfloat16 where it does not say."""
    text = hf_config.get("text_config") or {}
    candidates = (
        hf_config.get("dtype"),
        hf_config.get("torch_dtype"),
        text.get("dtype"),
        text.get("torch_dtype"),
    )
    return str(next((c for c in candidates if c is not None), "bfloat16"))


def _dtype(wanted: torch.dtype | str | None, hf_config: Mapping[str, Any]) -> torch.dtype:
    name = str(wanted or checkpoint_dtype(hf_config)).removeprefix("torch.")
    if name not in _DTYPES:
        raise SetupError(f"dtype {name} is not supported; supported: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _eos_ids(hf_config: Mapping[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids: those of generation_config.json where it has some, else the config's own."""
    sections = (hf_config.get("generation_config") or {}, hf_config, hf_config.get("text_config") or {})
    for section in sections:
        value = section.get("eos_token_id")
        if value is not None:
            return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)
    return ()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SetupError(
            f"{path.parent} has no {path.name}; a model directory in Hugging Face format does"
        ) from None
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path} holds no JSON object")
    return value
