# SPDX-License-Identifier: MIT
"""Fill the registry and bind ops to kernels: the only module that names a backend.

In: the ops of `api`, the kernels of the backends, the plugins of the entry-point group `tokenspeed.kernels`.
Out: `registry()`, built once, and `bind()`, which layers call once each when they are built. A backend or
plugin is an iterable of `Kernel`. A backend of our own that this machine cannot import is left out and logged
with its reason (`ref` remains); a plugin that cannot be imported, is no such iterable, or is refused by the
registry stops the start with a SetupError that names it, because somebody installed it on purpose.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tokenspeed.base.errors import SetupError
from tokenspeed.base.log import get_logger
from tokenspeed.kernels.api import OPS
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import TraitValue
from tokenspeed.kernels.registry import Registry
from tokenspeed.kernels.select import Choice, Overrides, select
from tokenspeed.kernels.spec import Kernel

BACKENDS = ("tokenspeed.kernels.cpu", "tokenspeed.kernels.triton", "tokenspeed.kernels.hopper")
"""Packages of this project that offer `KERNELS`."""

PLUGINS = "tokenspeed.kernels"
"""Entry-point group of plugins."""

_NO_OVERRIDES = Overrides()
_overrides: ContextVar[Overrides] = ContextVar("kernel_overrides", default=_NO_OVERRIDES)


class Bound(functools.partial[Any]):
    """An op bound to its kernel for one layer: call it with the op's arguments, nothing is looked up.

    `prepare` turns the layer's weights into what the call takes, `schedule` makes what the layers of one step
    share (None where there is nothing), `shares` says whether both take the blocks that rows share, `choice` which
    kernel this is and why.
    """

    prepare: Callable[..., Any]
    schedule: Callable[..., Any]
    shares: bool
    choice: Choice


def load(backends: Iterable[str], plugins: Iterable[EntryPoint]) -> Registry:
    """Build a registry of all ops, the given backends and the given plugins. Raises SetupError."""
    registry = Registry(OPS)
    for name in backends:
        for kernel in _backend_kernels(name):
            registry.add(kernel)
    for plugin in sorted(plugins, key=lambda point: point.name):
        for kernel in _plugin_kernels(plugin):
            try:
                registry.add(kernel)
            except SetupError as error:
                raise SetupError(f"{_title(plugin)} is refused: {error}") from error
    return registry


@functools.cache
def registry() -> Registry:
    """Return this process's registry, built at the first call. Nobody changes it afterwards."""
    return load(BACKENDS, entry_points(group=PLUGINS))


def bind(op: str, device: Device, **traits: TraitValue) -> Bound:
    """Select the kernel of an op for a layer and build it; overrides of an enclosing `overriding` apply.

    Raises SetupError for an unknown op, faulty traits, or an override whose needs do not hold.
    """
    return build(select(registry(), op, traits, device, _overrides.get().of(op)))


def build(choice: Choice) -> Bound:
    """Build a chosen kernel."""
    implementation = choice.kernel.build(choice.traits, choice.device)
    bound = Bound(implementation.call)
    bound.prepare = implementation.prepare or _nothing_to_prepare(choice.op)
    bound.schedule = implementation.schedule or _nothing_to_share
    bound.shares = implementation.shares
    bound.choice = choice
    return bound


@contextmanager
def overriding(*texts: str) -> Generator[None]:
    """Name kernels for every `bind` inside the `with`: "attention.mla_decode=ref", "attention.*=ref",
    "*=ref".

    Raises SetupError for a text that names no op or no kernel. Later texts win, inner ones over outer ones.
    """
    inner = Overrides.parse(texts, registry())
    token = _overrides.set(Overrides(_overrides.get().pairs + inner.pairs))
    try:
        yield
    finally:
        _overrides.reset(token)


def _nothing_to_prepare(op: str) -> Callable[..., Any]:
    def refuse(*_: object) -> Any:
        raise TypeError(f"{op} has no weights to prepare")

    return refuse


def _nothing_to_share(*_: object) -> None:
    return None


def _backend_kernels(name: str) -> tuple[Kernel, ...]:
    try:
        return tuple(importlib.import_module(name).KERNELS)
    except ImportError as error:
        # A machine without the backend's compiler (triton comes with CUDA builds of torch alone) is no fault.
        level = logging.INFO if (error.name or "").partition(".")[0] == "triton" else logging.WARNING
        get_logger("kernels").log(level, "backend %s is left out: %s", name, error)
        return ()


def _plugin_kernels(plugin: EntryPoint) -> tuple[Kernel, ...]:
    try:
        offered = plugin.load()
    except Exception as error:
        raise SetupError(f"{_title(plugin)} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(offered, Iterable) or not all(isinstance(kernel, Kernel) for kernel in offered):
        raise SetupError(
            f"{_title(plugin)} must be an iterable of tokenspeed.kernels.Kernel, got {offered!r}"
        )
    return tuple(replace(kernel, source=_distribution(plugin)) for kernel in offered)


def _distribution(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist is not None else plugin.value


def _title(plugin: EntryPoint) -> str:
    return f"kernel plugin {plugin.name!r} ({plugin.value}, from {_distribution(plugin)})"
