# SPDX-License-Identifier: MIT
"""Load a model: every parameter of every layer, from a directory of safetensors or from a seed.

In: a `Target` (a model) and a directory or seed. Out: the model with its weights installed, and what was
read. Names and shapes are all checked before the first byte of data is read: missing, misshapen and
unexpected tensors are one SetupError that names them.

Every parameter is allocated once, at its final size on its final device, and filled in place by several
readers; layers are installed one after another as they are complete. Readers run at most `_AHEAD_BYTES` ahead
of installation, so the peak above the model itself is that much, or one layer, and what installing a layer
takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.weights.checkpoint import Checkpoint
from tokenspeed.weights.formats import Encoded, Format, parse_format
from tokenspeed.weights.names import NameRules
from tokenspeed.weights.parameter import Fill, Parameter
from tokenspeed.weights.random import Tape
from tokenspeed.weights.readers import Piece, Readers

_NAMED_MAX: Final = 8
_PIECE_ELEMENTS: Final = 4 << 20  # 8 MiB in bf16: a few milliseconds of one reader
_AHEAD_BYTES: Final = 256 << 20  # on the host, where installing may pack a layer anew
_AHEAD_BYTES_CUDA: Final = 2 << 30  # two layers of a large mixture


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


def load(model: Target, directory: Path | str, *, readers: int | None = None) -> Loaded:
    """Fill `model` from the safetensors in `directory`, with as many reader threads as said, or as fit.

    Raises SetupError for missing, unexpected or misshapen tensors and for formats that are not supported.
    """
    form = parse_format(model.quantization_config)
    with Checkpoint(Path(directory)) as checkpoint:
        skipped = _check(model, checkpoint, form)
        with Readers(checkpoint, model.device, readers) as pool:
            held, read = _stream(model, checkpoint, form, pool)
    model.finish()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # what decoding took; the caller will measure what is free
    return Loaded(held, read, skipped)


@dataclass(frozen=True, slots=True)
class _Filling:
    """A layer whose parameters are being read. `read_bytes` is what that takes of the checkpoint."""

    layer: Loadable
    tensors: list[torch.Tensor]
    jobs: list[Future[torch.cuda.Event | None]]
    bytes: int
    read_bytes: int


def _stream(model: Target, checkpoint: Checkpoint, form: Format, pool: Readers) -> tuple[int, int]:
    """Read ahead and install in order; returns bytes held by parameters and bytes read."""
    ahead: deque[_Filling] = deque()
    limit = _AHEAD_BYTES_CUDA if model.device.type == "cuda" else _AHEAD_BYTES
    held = read = 0
    for layer in model.loadables():
        size = sum(parameter.bytes(model.dtype.itemsize) for parameter in layer.parameters)
        while ahead and sum(filling.bytes for filling in ahead) + size > limit:
            _install_first(ahead, pool)
        ahead.append(_begin(layer, model, checkpoint, form, pool))
        held, read = held + size, read + ahead[-1].read_bytes
    while ahead:
        _install_first(ahead, pool)
    return held, read


def _begin(layer: Loadable, model: Target, checkpoint: Checkpoint, form: Format, pool: Readers) -> _Filling:
    tensors = [_allocate(parameter, model) for parameter in layer.parameters]
    pieces = [
        piece
        for parameter, tensor in zip(layer.parameters, tensors, strict=True)
        for fill in parameter.fills
        for piece in _pieces(
            fill,
            tensor,
            model.names.source(fill.source),
            checkpoint,
            Encoded() if parameter.dtype == "float8" else form,
        )
    ]
    read = sum(checkpoint.bytes(region) for piece in pieces for region in piece.regions)
    return _Filling(layer, tensors, pool.start(pieces), sum(t.nbytes for t in tensors), read)


def _install_first(ahead: deque[_Filling], pool: Readers) -> None:
    filling = ahead.popleft()
    pool.join(filling.jobs)
    filling.layer.install(filling.tensors)


def _pieces(
    fill: Fill, tensor: torch.Tensor, name: str, checkpoint: Checkpoint, form: Format
) -> Iterator[Piece]:
    """A fill cut by rows into pieces that keep all readers busy to the end and need little memory each."""
    rows, rest = fill.take[0], fill.take[1:]
    shape = tuple(take.stop - take.start for take in fill.take)
    target = tensor[fill.into].view(shape)
    step = max(1, _PIECE_ELEMENTS * shape[0] // max(1, target.numel()))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        take = (slice(rows.start + start, rows.start + stop), *rest)
        yield Piece(target[start:stop], form.regions(checkpoint, name, take), partial(form.decode, take=take))


def load_dummy(model: Target, *, seed: int = 0, std: float = 0.02) -> Loaded:
    """Fill `model` with seeded random weights: normal deviates of `std`, ones for norms."""
    tape = Tape(seed, std, model.dtype, model.device)

    held = 0
    for layer in model.loadables():
        tensors = [_draw(parameter, model, tape) for parameter in layer.parameters]
        held += sum(tensor.nbytes for tensor in tensors)
        layer.install(tensors)
    model.finish()
    return Loaded(held, 0, ())


def _draw(parameter: Parameter, model: Target, tape: Tape) -> torch.Tensor:
    tensor = _allocate(parameter, model)
    if parameter.fill == "ones":
        return tensor.fill_(1)
    for fill in parameter.fills:
        region = tensor[fill.into]
        region.copy_(tape.read(fill).view(region.shape))
    return tensor


def _allocate(parameter: Parameter, model: Target) -> torch.Tensor:
    """Memory for a parameter; zero where another rank holds it."""
    make = torch.empty if parameter.fills else torch.zeros
    return make(parameter.shape, dtype=_dtype(parameter, model), device=model.device)


def _dtype(parameter: Parameter, model: Target) -> torch.dtype:
    return {"model": model.dtype, "float32": torch.float32, "float8": torch.float8_e4m3fn}[parameter.dtype]


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
