# SPDX-License-Identifier: MIT
"""Loading: backends in, plugins by entry point, a broken plugin stops the start and is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels import Device, bind, describe, overriding, registry, select
from tokenspeed.kernels.check import faults, grid
from tokenspeed.kernels.load import PLUGINS, load

GOOD = """
from tokenspeed.kernels import Band, Kernel, Needs, Plain


def rms(x, weight, eps, *, out=None):
    wide = x.double()
    y = (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()).to(x.dtype)
    return y if out is None else out.copy_(y)


KERNELS = [Kernel("norm.rms", "double", Needs(device={"cpu", "cuda"}, width={72}), Band.TUNED, Plain(rms))]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("plugged_")]:
        del sys.modules[name]


def install(site: Path, module: str, source: str, value: str = "KERNELS") -> tuple[EntryPoint, ...]:
    """Lay a distribution out as an installer would; return the plugins then found."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{PLUGINS}]\nours = {module}:{value}\n")
    return tuple(point for point in entry_points(group=PLUGINS) if point.value.startswith(module))


def test_plugin_is_found_loaded_and_chosen(site: Path, cpu: Device) -> None:
    loaded = load((), install(site, "plugged_good", GOOD))
    choice = select(loaded, "norm.rms", {"dtype": torch.float32, "width": 72}, cpu)
    assert (choice.kernel.name, choice.kernel.source) == ("double", "plugged_good")
    assert select(loaded, "norm.rms", {"dtype": torch.float32, "width": 64}, cpu).kernel.name == "ref"


def test_plugin_is_tested_by_the_same_harness(site: Path) -> None:
    loaded = load((), install(site, "plugged_good", GOOD))
    op, kernel = loaded.op("norm.rms"), loaded.kernels("norm.rms")[0]
    tried = [faults(op, kernel, traits, op.sizes[0], describe("cpu"), 0) for traits in grid(op, kernel.needs)]
    assert tried == [[], []]


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        ("import no_such_vendor", "KERNELS", "cannot be loaded: ModuleNotFoundError: .*no_such_vendor"),
        ("1 / 0", "KERNELS", "cannot be loaded: ZeroDivisionError"),
        ("", "KERNELS", "cannot be loaded: AttributeError"),
        ("KERNELS = 3", "KERNELS", "must be an iterable .*, got 3"),
        ("KERNELS = ['norm.rms']", "KERNELS", "must be an iterable"),
        (GOOD.replace("norm.rms", "norm.layer"), "KERNELS", "is refused: no op named 'norm.layer'"),
        (GOOD.replace("width=", "depth="), "KERNELS", "is refused: .* needs depth"),
    ],
)
def test_broken_plugin_stops_the_start_and_is_named(
    site: Path, source: str, value: str, message: str
) -> None:
    plugins = install(site, "plugged_bad", source, value)
    with pytest.raises(
        SetupError, match=r"kernel plugin 'ours' \(plugged_bad:KERNELS, from plugged_bad\) " + message
    ):
        load((), plugins)


def test_plugin_that_ties_with_another_is_refused(site: Path) -> None:
    plugins = install(site, "plugged_one", GOOD) + install(
        site, "plugged_two", GOOD.replace("double", "twice")
    )
    with pytest.raises(SetupError, match=r"plugged_two.* tie: both are TUNED"):
        load((), plugins)


def test_backend_that_this_machine_lacks_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(("tokenspeed.kernels.no_such_backend",), ())
    assert [kernel.name for kernel in loaded.kernels("norm.rms")] == ["ref"]
    assert "backend tokenspeed.kernels.no_such_backend is left out" in caplog.text


def test_registry_is_built_once() -> None:
    assert registry() is registry()


def test_overrides_hold_inside_their_scope(cpu: Device) -> None:
    with overriding("*=ref"):
        assert bind("norm.rms", cpu, dtype=torch.float32, width=64).choice.reason == "named by an override"
    assert bind("norm.rms", cpu, dtype=torch.float32, width=64).choice.reason != "named by an override"


def test_override_that_names_nothing_is_refused_at_once() -> None:
    with pytest.raises(SetupError, match="no op named"), overriding("norm.layer=ref"):
        pass
