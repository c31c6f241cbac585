# SPDX-License-Identifier: MIT
"""Loading: what is read lands where it belongs, what does not fit is named before anything is read."""

from __future__ import annotations

import importlib
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenspeed import weights
from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh
from tokenspeed.weights.checkpoint import Checkpoint

loading = importlib.import_module("tokenspeed.weights.load")  # the package's `load` is the function


def test_merged_and_stacked_parameters_hold_their_parts(
    built: Any, fit: Any, written: Any, recorded: Any, tmp_path: Path
) -> None:
    model = built()
    tensors = fit(model)
    seen = recorded(model)
    done = weights.load(model, written(tmp_path / "m", tensors))
    layer = "model.layers.1"
    joined = torch.cat([tensors[f"{layer}.self_attn.{n}.weight"] for n in ("q_a_proj", "kv_a_proj_with_mqa")])
    assert torch.equal(seen.tensors[f"{layer}.self_attn.qkv_a.weight"], joined)
    for expert in range(4):
        source = f"{layer}.mlp.experts.{expert}"
        halves = torch.cat([tensors[f"{source}.{half}_proj.weight"] for half in ("gate", "up")])
        assert torch.equal(seen.tensors[f"{layer}.mlp.experts.gate_up_proj"][expert], halves)
        assert torch.equal(
            seen.tensors[f"{layer}.mlp.experts.down_proj"][expert], tensors[f"{source}.down_proj.weight"]
        )
    assert done.parameter_bytes == model.facts.parameter_bytes == done.read_bytes
    assert done.skipped == ()


def test_single_file_without_index_loads(built: Any, fit: Any, tmp_path: Path) -> None:
    model = built()
    save_file(fit(model), tmp_path / "model.safetensors")
    assert weights.load(model, tmp_path).read_bytes == model.facts.parameter_bytes


@pytest.mark.parametrize("mesh", [Mesh(tp=2), Mesh(tp=2, ep=2), Mesh(tp=4)])
def test_ranks_read_their_own_bytes_and_together_hold_the_whole(
    mesh: Mesh, built: Any, fit: Any, written: Any, tmp_path: Path
) -> None:
    """Row shards and experts are read once over all ranks; only what every rank holds is read by every
    rank.
    """

    class Still:
        def move(self, kind: str, value: Any, *, axis: str, dim: int) -> Any:
            raise AssertionError

    whole = built()
    directory = written(tmp_path / "m", fit(whole))
    read = []
    for rank in range(mesh.ranks):
        model = built(mesh=mesh.at(rank), collectives=Still())
        done = weights.load(model, directory)
        assert done.read_bytes == done.parameter_bytes == model.facts.parameter_bytes
        assert done.read_bytes < whole.facts.parameter_bytes
        read.append(done.read_bytes)
    replicated = sum(
        fill_bytes(parameter)
        for layer in built(mesh=mesh).loadables()
        for parameter in layer.parameters
        if all(
            take.stop - take.start == size
            for f in parameter.fills
            for take, size in zip(f.take, f.shape, strict=True)
        )
        and "experts." not in parameter.name
    )
    assert sum(read) - (mesh.ranks - 1) * replicated == whole.facts.parameter_bytes


def fill_bytes(parameter: Any) -> int:
    return parameter.elements * 4


def test_missing_misshapen_and_unexpected_tensors_are_all_named_at_once(
    built: Any, fit: Any, written: Any, tmp_path: Path
) -> None:
    model = built()
    tensors = fit(model)
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(161)
    tensors["model.layers.0.self_attn.rotor.weight"] = torch.ones(3)
    with pytest.raises(SetupError) as refused:
        weights.load(model, written(tmp_path / "m", tensors))
    said = str(refused.value)
    assert "1 missing: model.layers.1.mlp.experts.2.up_proj.weight" in said
    assert "1 misshapen: model.norm.weight is [161], config.json implies [160]" in said
    assert "1 unexpected: model.layers.0.self_attn.rotor.weight" in said


def test_long_lists_of_names_are_cut(built: Any, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SetupError, match=r"\d+ missing: .*, \.\.\.; 1 unexpected: x"):
        weights.load(built(), tmp_path)


def test_prediction_layers_and_stale_rope_buffers_are_skipped_and_listed(
    built: Any, fit: Any, written: Any, tmp_path: Path
) -> None:
    model = built()
    extra = {
        "model.layers.2.eh_proj.weight": torch.ones(2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    done = weights.load(model, written(tmp_path / "m", fit(model) | extra))
    assert set(done.skipped) == set(extra)


def test_prediction_layers_that_the_config_does_not_announce_are_unexpected(
    built: Any, fit: Any, written: Any, tmp_path: Path
) -> None:
    model = built(config={"num_nextn_predict_layers": 0})
    extra = {"model.layers.2.eh_proj.weight": torch.ones(2)}
    with pytest.raises(SetupError, match=r"unexpected: model\.layers\.2\.eh_proj\.weight"):
        weights.load(model, written(tmp_path / "m", fit(model) | extra))


def test_index_that_names_absent_files_or_tensors_is_refused(
    built: Any, fit: Any, written: Any, tmp_path: Path
) -> None:
    directory = written(tmp_path / "m", fit(built()))
    index = directory / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    where["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(where))
    with pytest.raises(SetupError, match="names tensors its files do not hold: ghost"):
        weights.load(built(), directory)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(SetupError, match=r"1 files named by .* are absent .*model-00002-of-00003"):
        weights.load(built(), directory)


def test_directories_without_safetensors_say_what_they_hold(built: Any, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SetupError, match=r"holds no safetensors; it has pytorch_model\.bin.*convert"):
        weights.load(built(), tmp_path)
    with pytest.raises(SetupError, match="is not a directory"):
        weights.load(built(), tmp_path / "nowhere")


def test_truncated_files_are_refused(built: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(SetupError, match=r"cannot read model\.safetensors"):
        weights.load(built(), tmp_path)


def test_dummy_weights_repeat_by_seed_and_slice_when_sharded(built: Any, recorded: Any) -> None:
    def load(seed: int, mesh: Mesh | None = None) -> dict[str, torch.Tensor]:
        model = built(mesh=mesh or Mesh(), collectives=object())
        seen = recorded(model)
        weights.load_dummy(model, seed=seed)
        return seen.tensors

    one, again, other, right = load(1), load(1), load(2), load(1, Mesh(tp=2, rank=1))
    name = "model.layers.0.mlp.gate_up_proj.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    assert torch.equal(right[name], torch.cat((one[name][96:192], one[name][288:384])))
    assert abs(float(one[name].std()) - 0.02) < 0.001
    assert torch.equal(one["model.norm.weight"], torch.ones(160))
    assert torch.linalg.matrix_rank(one[name]) == 160


@pytest.mark.parametrize("readers", [1, 3, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_readers_and_pieces_loads_the_same(
    readers: int,
    dtype: str,
    built: Any,
    fit: Any,
    written: Any,
    recorded: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A piece may be a row, part of an expert, or all of it; values may be read into place or converted."""
    tensors = fit(built())
    directory = written(tmp_path / "m", tensors)
    monkeypatch.setattr(loading, "_PIECE_ELEMENTS", 700)
    model = built(dtype=dtype)
    seen = recorded(model)
    done = weights.load(model, directory, readers=readers)
    assert done.read_bytes == sum(tensor.nbytes for tensor in tensors.values())
    for layer in model.loadables():
        for parameter in layer.parameters:
            got = seen.tensors[parameter.name]
            for fill in parameter.fills:
                want = tensors[fill.source][fill.take].to(got.dtype)
                assert torch.equal(got[fill.into].view(want.shape), want), fill.source


def test_memory_ahead_of_installation_is_bounded_and_parameters_are_allocated_once(
    built: Any, fit: Any, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that keep nothing leave at most the bound, or one layer, alive; nothing is stacked from parts."""
    model = built()
    directory = written(tmp_path / "m", fit(model))
    allocate, alive, peak, total = loading._allocate, 0, 0, 0

    def free(size: int) -> None:
        nonlocal alive
        alive -= size

    def counted(parameter: Any, model: Any) -> torch.Tensor:
        nonlocal alive, peak, total
        tensor = allocate(parameter, model)
        alive, total = alive + tensor.nbytes, total + tensor.nbytes
        peak = max(peak, alive)
        weakref.finalize(tensor, free, tensor.nbytes)
        return tensor

    sizes = []
    for layer in model.loadables():
        layer.install = lambda tensors: None
        sizes.append(sum(parameter.elements * 4 for parameter in layer.parameters))
    monkeypatch.setattr(loading, "_allocate", counted)
    monkeypatch.setattr(loading, "_AHEAD_BYTES", 100_000)
    model.finish = lambda: None  # its steps would ask the layers for what they did not keep
    done = weights.load(model, directory)
    assert total == done.parameter_bytes == sum(sizes)
    assert max(sizes) <= peak <= max(100_000, max(sizes))
    assert peak < total


def test_an_error_while_reading_ends_the_load(
    built: Any, fit: Any, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_into = Checkpoint.read_into

    def failing(self: Checkpoint, region: Any, out: torch.Tensor) -> None:
        if region.name == "model.layers.1.mlp.experts.2.up_proj.weight":
            raise SetupError("the disk is gone")
        read_into(self, region, out)

    monkeypatch.setattr(Checkpoint, "read_into", failing)
    model = built()
    with pytest.raises(SetupError, match="the disk is gone"):
        weights.load(model, written(tmp_path / "m", fit(model)), readers=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_holds_what_the_host_holds(
    dtype: str,
    built: Any,
    fit: Any,
    written: Any,
    recorded: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pieces of 700 elements, so that every reader uses both of its buffers many times."""
    monkeypatch.setattr(loading, "_PIECE_ELEMENTS", 700)
    directory = written(tmp_path / "m", fit(built()))
    seen: list[dict[str, torch.Tensor]] = []
    for device in ("cpu", "cuda"):
        model = built(dtype=dtype, device=device)
        record = recorded(model)
        weights.load(model, directory, readers=6)
        seen.append(record.tensors)
    for name, tensor in seen[0].items():
        assert seen[1][name].is_cuda
        assert torch.equal(seen[1][name].cpu(), tensor), name
