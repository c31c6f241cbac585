# SPDX-License-Identifier: MIT
"""Rotary position angles: from the rope section of a config to one table of cosines and sines.

In: `RopeConfig`, parsed from a Hugging Face config of either spelling (`rope_parameters`, or `rope_scaling`
with `rope_theta`). Out: `table(positions)` [M, rot] float32, cosines in the first half, sines in the second,
any attention factor multiplied in; and the factor YaRN puts on the softmax scale. It rotates nothing: that is
`rope.*_write`.

    default   theta^(-2i/rot)
    linear    the same, positions divided by `factor`
    dynamic   theta grows with the context past the trained length (NTK); each position takes the theta of the
              context that ends at it, so its angle never depends on what else is in the batch
    llama3    long wavelengths divided by `factor`, short ones kept, a blend between (Llama 3.1 model card)
    yarn      the same idea with a ramp over dimensions, and an attention factor (arXiv 2309.00071)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenspeed.base.errors import SetupError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """The rope of one model. `trained_tokens` is the context the frequencies were trained for."""

    rotary_dim: int
    theta: float
    kind: str
    factor: float
    trained_tokens: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SetupError(f"rope type {self.kind!r} is not supported; supported: {', '.join(KINDS)}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise SetupError(
                f"rope turns {self.rotary_dim} dimensions of a head; it must be even and at least 2"
            )

    @property
    def softmax_factor(self) -> float:
        """What DeepSeek's YaRN multiplies the softmax scale by: mscale(factor, mscale_all_dim) squared."""
        if self.kind == "default" or not self.mscale_all_dim:
            return 1.0
        return _mscale(self.factor, self.mscale_all_dim) ** 2


def parse_rope(config: Mapping[str, Any], head_dim: int) -> RopeConfig:
    """Read the rope of a Hugging Face config; `head_dim` is the width of what rotates. Raises SetupError."""
    section: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = section.get("rope_type") or section.get("type") or "default"
    theta = _number("rope_theta", 10000.0, section, config)
    partial = _number("partial_rotary_factor", 1.0, section, config)
    context_tokens = int(config["max_position_embeddings"])
    trained_tokens = int(_number("original_max_position_embeddings", context_tokens, section))
    if kind in ("linear", "dynamic", "llama3") and not section.get("factor"):
        raise SetupError(f"rope type {kind!r} needs a factor; config.json has none")
    return RopeConfig(
        rotary_dim=int(head_dim * partial),
        theta=theta,
        kind=str(kind),
        factor=_number("factor", context_tokens / trained_tokens, section),
        trained_tokens=trained_tokens,
        low_freq_factor=_number("low_freq_factor", 1.0, section),
        high_freq_factor=_number("high_freq_factor", 4.0, section),
        beta_fast=_number("beta_fast", 32.0, section),
        beta_slow=_number("beta_slow", 1.0, section),
        attention_factor=_number("attention_factor", 0.0, section) or None,
        mscale=_number("mscale", 0.0, section),
        mscale_all_dim=_number("mscale_all_dim", 0.0, section),
        truncate=bool(section.get("truncate", True)),
    )


def _number(name: str, default: float, *sections: Mapping[str, Any]) -> float:
    """The first of these fields that is there and not zero."""
    value = next((section[name] for section in sections if section.get(name)), default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SetupError(f"config.json: {name} is {value!r}; it must be a number")
    return float(value)


class Rotary:
    """The angle table of a model, shared by its layers; it takes memory only when `make` is called."""

    def __init__(self, config: RopeConfig, positions: int) -> None:
        self.config = config
        self.positions = positions
        self.table: Tensor

    def make(self, device: torch.device) -> None:
        """Compute the table [positions, rot] on `device`."""
        self.table = angles(self.config, self.positions).to(device)


def angles(config: RopeConfig, positions: int) -> Tensor:
    """[positions, rot] float32: cosines, then sines."""
    at = torch.arange(positions, dtype=torch.float32).unsqueeze(1)
    turns = at * _frequencies(config, positions)
    factor = _attention_factor(config)
    return torch.cat((turns.cos() * factor, turns.sin() * factor), dim=1)


def _frequencies(config: RopeConfig, positions: int) -> Tensor:
    """Radians per position: [rot / 2], or [positions, rot / 2] where they change with the position."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    plain = 1.0 / config.theta**exponents
    match config.kind:
        case "linear":
            return plain / config.factor
        case "dynamic":
            return _dynamic(config, positions, exponents)
        case "llama3":
            return _llama3(config, plain)
        case "yarn":
            return _yarn(config, plain)
        case _:
            return plain


def _dynamic(config: RopeConfig, positions: int, exponents: Tensor) -> Tensor:
    context = (
        torch.arange(1, positions + 1, dtype=torch.float32).clamp_min(config.trained_tokens).unsqueeze(1)
    )
    growth = config.factor * context / config.trained_tokens - (config.factor - 1)
    theta = config.theta * growth ** (config.rotary_dim / (config.rotary_dim - 2))
    return 1.0 / theta**exponents


def _llama3(config: RopeConfig, plain: Tensor) -> Tensor:
    wavelengths = 2 * math.pi / plain
    longest = config.trained_tokens / config.low_freq_factor
    shortest = config.trained_tokens / config.high_freq_factor
    blend = (config.trained_tokens / wavelengths - config.low_freq_factor) / (
        config.high_freq_factor - config.low_freq_factor
    )
    smooth = (1 - blend) * plain / config.factor + blend * plain
    scaled = torch.where(wavelengths > longest, plain / config.factor, smooth)
    return torch.where(wavelengths < shortest, plain, scaled)


def _yarn(config: RopeConfig, plain: Tensor) -> Tensor:
    low, high = (_dimension_of(config, rotations) for rotations in (config.beta_fast, config.beta_slow))
    if config.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, config.rotary_dim - 1.0)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(config.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / config.factor * ramp + plain * (1 - ramp)


def _dimension_of(config: RopeConfig, rotations: float) -> float:
    """The (fractional) pair that turns `rotations` times over the trained context."""
    return (
        config.rotary_dim
        * math.log(config.trained_tokens / (rotations * 2 * math.pi))
        / (2 * math.log(config.theta))
    )


def _attention_factor(config: RopeConfig) -> float:
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return float(config.attention_factor)
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
