# SPDX-License-Identifier: MIT
"""Load a model: every parameter of every layer, from a directory of safetensors or from a seed.

In: a `Target` (a model) and a directory or seed. Out: the model with its weights installed, and what was
read. Names and shapes are all checked before the first byte of data is read: missing, misshapen and
unexpected tensors are one SetupError that names them. Layers are filled one after another, so the peak above
the model itself is one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.weights.checkpoint import Checkpoint
from tokenspeed.weights.formats import Format, parse_format
from tokenspeed.weights.names import NameRules
from tokenspeed.weights.parameter import Fill, Parameter
from tokenspeed.weights.random import Tape

_NAMED_MAX = 8


class Loadable(Protocol):
    """A layer that has weights."""

    @property
    def parameters(self) -> Sequence[Parameter]:
        """What this rank holds of the layer."""
        ...

    def install(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take the tensors of `parameters`, in that order, on the model's device."""
        ...


class Target(Protocol):
    """A model to be loaded."""

    @property
    def names(self) -> NameRules: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def quantization_config(self) -> Mapping[str, Any] | None: ...
    def loadables(self) -> Iterable[Loadable]: ...
    def finish(self) -> None:
        """Called once, after the last layer."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did: bytes held by the parameters, bytes read, checkpoint tensors knowingly left unread."""

    parameter_bytes: int
    read_bytes: int
    skipped: tuple[str, ...]


def load(model: Target, directory: Path | str) -> Loaded:
    """Fill `model` from the safetensors in `directory`.

    Raises SetupError for missing, unexpected or misshapen tensors and for formats that are not supported.
    """
    checkpoint = Checkpoint(Path(directory))
    form = parse_format(model.quantization_config)
    skipped = _check(model, checkpoint, form)

    def read(fill: Fill) -> torch.Tensor:
        return form.read(checkpoint, model.names.source(fill.source), fill.take)

    held = _install(model, lambda parameter: _assemble(parameter, model, read))
    return Loaded(held, checkpoint.read_bytes, skipped)


def load_dummy(model: Target, *, seed: int = 0, std: float = 0.02) -> Loaded:
    """Fill `model` with seeded random weights: normal deviates of `std`, ones for norms."""
    tape = Tape(seed, std, model.dtype)

    def assemble(parameter: Parameter) -> torch.Tensor:
        if parameter.fill == "ones":
            return torch.ones(parameter.shape, dtype=_dtype(parameter, model), device=model.device)
        return _assemble(parameter, model, tape.read)

    return Loaded(_install(model, assemble), 0, ())


def _install(model: Target, assemble: Callable[[Parameter], torch.Tensor]) -> int:
    held = 0
    for layer in model.loadables():
        tensors = [assemble(parameter) for parameter in layer.parameters]
        held += sum(tensor.nbytes for tensor in tensors)
        layer.install(tensors)
    model.finish()
    return held


def _assemble(parameter: Parameter, model: Target, read: Callable[[Fill], torch.Tensor]) -> torch.Tensor:
    dtype = _dtype(parameter, model)
    if not parameter.fills:
        return torch.zeros(parameter.shape, dtype=dtype, device=model.device)
    tensor = torch.empty(parameter.shape, dtype=dtype, device=model.device)
    for fill in parameter.fills:
        region = tensor[fill.into]
        region.copy_(read(fill).view(region.shape))
    return tensor


def _dtype(parameter: Parameter, model: Target) -> torch.dtype:
    return torch.float32 if parameter.dtype == "float32" else model.dtype


def _check(model: Target, checkpoint: Checkpoint, form: Format) -> tuple[str, ...]:
    """Compare what the model wants with what there is; return the names skipped on purpose."""
    missing: list[str] = []
    misshapen: list[str] = []
    used: set[str] = set()
    for layer in model.loadables():
        for parameter in layer.parameters:
            for source in parameter.sources:
                stored = form.stored(checkpoint, model.names.source(source))
                used.update(stored)
                missing += [name for name in stored if name not in checkpoint]
            for fill in parameter.fills:
                name = model.names.source(fill.source)
                if all(n in checkpoint for n in form.stored(checkpoint, name)):
                    shape = form.shape(checkpoint, name)
                    if shape != fill.shape:
                        misshapen.append(f"{name} is {list(shape)}, config.json implies {list(fill.shape)}")
    unread = sorted(checkpoint.names - used)
    skipped = tuple(name for name in unread if model.names.skips(name))
    unexpected = [name for name in unread if not model.names.skips(name)]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_NAMED_MAX])}{', ...' if len(names) > _NAMED_MAX else ''}"
        for what, names in (("missing", missing), ("misshapen", misshapen), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise SetupError(f"the weights in {checkpoint.directory} do not fit the model: {'; '.join(problems)}")
    return skipped
