# SPDX-License-Identifier: MIT
"""Quantised checkpoints load as their dequantised twins, whole and cut anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenspeed import weights
from tokenspeed.base.errors import SetupError
from tokenspeed.dist import Mesh
from tokenspeed.weights.checkpoint import Checkpoint
from tokenspeed.weights.formats import BlockFp8, Format, PackedInt4, Plain, parse_format

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic"}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": 32,
                "symmetric": True,
            }
        }
    },
}


def to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise by 128 x 128 blocks, loop by loop: (e4m3, scale_inv, what they mean)."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // 128), -(-columns // 128))
    stored, meant = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128))
            scales[i, j] = weight[at].abs().max() / 448
            stored[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
            meant[at] = stored[at].float() * scales[i, j]
    return stored, scales, meant


def to_int4(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise by groups of a row and pack eight values an int32, lowest bits first."""
    rows, columns = weight.shape
    grouped = weight.view(rows, -1, group)
    scale = grouped.abs().amax(-1, keepdim=True) / 7
    values = (grouped / scale).round().clamp(-8, 7).to(torch.int64)
    meant = (values * scale).view(rows, columns)
    lanes = (values.view(rows, -1, 8) + 8) << (4 * torch.arange(8))
    words = lanes.sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32), scale.squeeze(-1), meant


def read(form: Format, directory: Path, take: tuple[slice, slice]) -> torch.Tensor:
    """A region of tensor "w", read and decoded."""
    with Checkpoint(directory) as checkpoint:
        regions = form.regions(checkpoint, "w", take)
        return form.decode([checkpoint.read(region) for region in regions], take)


def quantised(
    tensors: dict[str, torch.Tensor], kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A checkpoint with its projections quantised, and its plain twin."""
    stored, twin = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if not name.endswith("proj.weight") or (kind == "int4" and ".mlp.experts." not in name):
            continue
        if kind == "fp8":
            stored[name], stored[f"{name}_scale_inv"], twin[name] = to_fp8(tensor)
        elif tensor.shape[1] % 32 == 0:
            del stored[name]
            stored[f"{name}_packed"], stored[f"{name}_scale"], twin[name] = to_int4(tensor, 32)
            stored[f"{name}_shape"] = torch.tensor(tensor.shape)
    return stored, twin


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_quantised_checkpoint_loads_as_its_twin(
    kind: str, built: Any, fit: Any, written: Any, recorded: Any, tmp_path: Path
) -> None:
    section = {"quantization_config": FP8 if kind == "fp8" else INT4}
    stored, twin = quantised(fit(built()), kind)
    assert set(stored) != set(twin)
    encoded, plain = built(config=section), built()
    seen, want = recorded(encoded), recorded(plain)
    weights.load(encoded, written(tmp_path / "q", stored))
    weights.load(plain, written(tmp_path / "p", twin))
    for name, tensor in want.tensors.items():
        torch.testing.assert_close(seen.tensors[name], tensor, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_a_gpu_decodes_as_the_host_does(
    kind: str, built: Any, fit: Any, written: Any, recorded: Any, tmp_path: Path
) -> None:
    section = {"quantization_config": FP8 if kind == "fp8" else INT4}
    stored, _ = quantised(fit(built()), kind)
    directory = written(tmp_path / "q", stored)
    seen: list[dict[str, torch.Tensor]] = []
    for device in ("cpu", "cuda"):
        model = built(config=section, dtype="bfloat16", device=device)
        record = recorded(model)
        weights.load(model, directory, readers=5)
        seen.append(record.tensors)
    for name, tensor in seen[0].items():
        assert torch.equal(seen[1][name].cpu(), tensor), name


def test_fp8_shards_that_cut_a_block_are_decoded_with_its_scale(
    built: Any, fit: Any, written: Any, recorded: Any, tmp_path: Path
) -> None:
    stored, twin = quantised(fit(built()), "fp8")
    mesh = Mesh(tp=4, rank=3)
    encoded = built(config={"quantization_config": FP8}, mesh=mesh, collectives=object())
    plain = built(mesh=mesh, collectives=object())
    seen, want = recorded(encoded), recorded(plain)
    weights.load(encoded, written(tmp_path / "q", stored))
    weights.load(plain, written(tmp_path / "p", twin))
    for name, tensor in want.tensors.items():
        torch.testing.assert_close(seen.tensors[name], tensor, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.parametrize("take", [(slice(0, 300), slice(0, 200)), (slice(100, 260), slice(64, 192))])
def test_block_scales_apply_to_any_region(take: tuple[slice, slice], tmp_path: Path) -> None:
    stored, scales, meant = to_fp8(torch.randn(300, 200))
    save_file({"w": stored, "w_scale_inv": scales}, tmp_path / "model.safetensors")
    torch.testing.assert_close(read(BlockFp8(), tmp_path, take), meant[take])


def test_int4_regions_follow_groups(tmp_path: Path) -> None:
    words, scale, meant = to_int4(torch.randn(6, 128), 32)
    save_file({"w_packed": words, "w_scale": scale}, tmp_path / "model.safetensors")
    take = (slice(2, 5), slice(32, 96))
    torch.testing.assert_close(read(PackedInt4(32), tmp_path, take), meant[take])
    with pytest.raises(SetupError, match="cut a group of 32"):
        read(PackedInt4(32), tmp_path, (slice(0, 6), slice(0, 40)))


def test_missing_scale_is_named(built: Any, fit: Any, written: Any, tmp_path: Path) -> None:
    stored, _ = quantised(fit(built()), "fp8")
    del stored["model.layers.0.mlp.down_proj.weight_scale_inv"]
    with pytest.raises(SetupError, match=r"1 missing: model\.layers\.0\.mlp\.down_proj\.weight_scale_inv"):
        weights.load(built(config={"quantization_config": FP8}), written(tmp_path / "q", stored))


def test_fp8_without_a_config_that_says_so_is_refused(
    built: Any, fit: Any, written: Any, tmp_path: Path
) -> None:
    stored, _ = quantised(fit(built()), "fp8")
    plain = {name: tensor for name, tensor in stored.items() if not name.endswith("_scale_inv")}
    with pytest.raises(SetupError, match=r"stored as F8_E4M3; config\.json has no quantization_config"):
        weights.load(built(), written(tmp_path / "q", plain))


def test_formats_parse_by_what_they_say() -> None:
    assert parse_format(None) == Plain()
    assert parse_format(FP8) == BlockFp8(128, 128)
    assert parse_format(INT4) == PackedInt4(32)
    with pytest.raises(SetupError, match=r"quant_method 'awq' are not supported; supported: fp8"):
        parse_format({"quant_method": "awq"})
    with pytest.raises(SetupError, match="'fp8'"):
        parse_format({"quant_method": "fp8"})
