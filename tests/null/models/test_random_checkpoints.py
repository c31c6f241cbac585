# SPDX-License-Identifier: MIT
"""What `benchmarks/make_checkpoint.py` writes is read alike by transformers and by the engine, shape by shape."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from tokenspeed import models, weights
from tokenspeed.text.plane import TextPlane

ROOT = Path(__file__).parents[3]
NARROW: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "head_dim": 32,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_experts": 8,
    "num_experts_per_tok": 3,
}


def _writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_checkpoint", ROOT / "benchmarks" / "make_checkpoint.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make = _writer()


def narrow(name: str, **over: Any) -> dict[str, Any]:
    """A shape with every size cut and every choice kept."""
    config = dict(make.SHAPES[name])
    config.update({key: value for key, value in NARROW.items() if config.get(key) is not None})
    heads = config["num_key_value_heads"]
    config["num_key_value_heads"] = 4 if "kv_lora_rank" in config else max(1, 4 * heads // 32)
    if config["rope_scaling"]:
        config["rope_scaling"] = {
            **config["rope_scaling"],
            "original_max_position_embeddings": 64,
            "factor": 4.0,
        }
    return {**config, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32", **over}


@pytest.mark.parametrize("name", sorted(make.SHAPES))
def test_tiny_version_of_every_shape_agrees_with_transformers(name: str, paged: Any, tmp_path: Path) -> None:
    size = make.write(narrow(name), tmp_path)
    assert size == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) - _header_bytes(
        tmp_path
    )
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    model = models.build(models.read_config(tmp_path), block_tokens=16)
    assert weights.load(model, tmp_path).read_bytes == size
    tokens = torch.randint(2, 512, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    driver = paged(model)
    (logits,) = driver.step([(driver.row(tokens), 40)], sampled="all")
    with torch.inference_mode():
        want = hf(torch.tensor([tokens]), use_cache=False).logits[0].float()
    assert float((logits - want).abs().max()) <= 2e-5 * max(1.0, float(want.abs().max()))
    assert float(want.std()) > 0.05


def _header_bytes(directory: Path) -> int:
    paths = directory.glob("*.safetensors")
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in paths)


@pytest.mark.parametrize("name", ["moonlight-16b-a3b", "kimi-k2-slice", "qwen3-30b-a3b"])
def test_fp8_checkpoint_equals_its_plain_twin(name: str, paged: Any, tmp_path: Path) -> None:
    """The same seed, stored both ways: rounding apart the same weights, and each is what its parts mean."""
    # Wider than a block, and no multiple of one.
    config = narrow(name, hidden_size=192, intermediate_size=272)
    make.write(config, tmp_path / "plain")
    make.write({**config, "quantization_config": make.FP8_CONFIG}, tmp_path / "fp8")
    (file,) = (tmp_path / "fp8").glob("*.safetensors")
    with safe_open(file, "pt") as stored:
        names = set(stored.keys())
        scaled = {n for n in names if f"{n}_scale_inv" in names}
        assert {stored.get_slice(n).get_dtype() for n in scaled} == {"F8_E4M3"}
        assert {stored.get_slice(n).get_dtype() for n in names - scaled} <= {"F32"}
    assert {n for n in names if "_proj" in n and not n.endswith("scale_inv")} == scaled
    tokens = torch.randint(2, 512, (24,), generator=torch.Generator().manual_seed(2)).tolist()
    seen: list[torch.Tensor] = []
    for which in ("plain", "fp8"):
        model = models.build(models.read_config(tmp_path / which), block_tokens=16)
        weights.load(model, tmp_path / which)
        driver = paged(model)
        seen += driver.step([(driver.row(tokens), 24)], sampled="all")
    error = (seen[0] - seen[1]).norm() / seen[0].norm()
    assert 1e-4 < float(error) < 0.1  # three bits of fraction


GQA = {"hidden_size": 192, "intermediate_size": 384, "head_dim": 64, "num_attention_heads": 4}
MLA = {"hidden_size": 192, "intermediate_size": 272, "moe_intermediate_size": 128}
HELD: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "dense": (
        "qwen3-8b",
        {**GQA, "num_key_value_heads": 2},
        {"qkv_proj.weight", "o_proj.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight"},
    ),
    # One kv head of 64 leaves the seam between k and v inside a block, and that weight is decoded.
    "seam": (
        "qwen3-8b",
        {**GQA, "num_key_value_heads": 1},
        {"o_proj.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight"},
    ),
    # 272 rows of the dense layer's gate cut a block; experts of 128 do not.
    "experts": (
        "moonlight-16b-a3b",
        {**MLA, "qk_nope_head_dim": 24},
        {
            "q_proj.weight", "kv_a_proj_with_mqa.weight", "o_proj.weight", "mlp.down_proj.weight",
            "experts.gate_up_proj", "experts.down_proj", "shared_experts.gate_up_proj.weight",
            "shared_experts.down_proj.weight",
        },
    ),
    # Experts of 48 do: they are decoded, all or none of a layer. So are q and kv_a where 96 rows of q leave
    # the seam between them inside a block.
    "small experts": (
        "moonlight-16b-a3b",
        {**MLA, "moe_intermediate_size": 48},
        {"o_proj.weight", "mlp.down_proj.weight"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(HELD))
def test_fp8_weights_held_as_they_are_compute_what_decoded_ones_do(
    case: str, paged: Any, tmp_path: Path
) -> None:
    name, sizes, encoded = HELD[case]
    make.write({**narrow(name), **sizes, "quantization_config": make.FP8_CONFIG}, tmp_path)
    tokens = torch.randint(2, 512, (24,), generator=torch.Generator().manual_seed(2)).tolist()
    seen: list[torch.Tensor] = []
    for quantization in (None, "fp8_block"):
        model = models.build(models.read_config(tmp_path), block_tokens=16, quantization=quantization)
        held = {p.name for layer in model.loadables() for p in layer.parameters if p.dtype == "float8"}
        wanted = encoded if quantization else set()
        assert {next((end for end in wanted if n.endswith(f".{end}")), n) for n in held} == wanted
        assert weights.load(model, tmp_path).parameter_bytes == model.facts.parameter_bytes
        driver = paged(model)
        seen += driver.step([(driver.row(tokens), 24)], sampled="all")
    assert float((seen[0] - seen[1]).abs().max()) <= 1e-5 * max(1.0, float(seen[0].abs().max()))


def test_weights_of_a_plain_checkpoint_are_rounded_to_fp8_blocks(paged: Any, tmp_path: Path) -> None:
    """Nothing is read as encoded; experts whose gate and up would share a block stay as they are."""
    make.write({**narrow("moonlight-16b-a3b"), **MLA, "qk_nope_head_dim": 24}, tmp_path)
    tokens = torch.randint(2, 512, (24,), generator=torch.Generator().manual_seed(2)).tolist()
    seen: list[torch.Tensor] = []
    for quantization in (None, "fp8_block"):
        model = models.build(models.read_config(tmp_path), block_tokens=16, quantization=quantization)
        assert not [p.name for layer in model.loadables() for p in layer.parameters if p.dtype == "float8"]
        weights.load(model, tmp_path)
        driver = paged(model)
        seen += driver.step([(driver.row(tokens), 24)], sampled="all")
    error = (seen[0] - seen[1]).abs().mean()
    assert 0 < error < 0.15 * seen[0].std()


def test_values_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    config = narrow("moonlight-16b-a3b")
    make.write(config, tmp_path / "three")
    make.write({**config, "num_hidden_layers": 2}, tmp_path / "two")
    make.write(config, tmp_path / "other", seed=1)
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    values: list[torch.Tensor] = []
    for which in ("three", "two", "other"):
        (file,) = (tmp_path / which).glob("*.safetensors")
        with safe_open(file, "pt") as stored:
            values.append(stored.get_tensor(name))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert float(values[0].std()) == pytest.approx(0.02, rel=0.05)


def test_shards_are_cut_by_size_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "SHARD_BYTES_MAX", 60_000)
    config = narrow("moonlight-16b-a3b")
    size = make.write({**config, "quantization_config": make.FP8_CONFIG}, tmp_path)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert len(paths) > 5
    assert paths[0].name == f"model-00001-of-{len(paths):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    assert set(index["weight_map"].values()) == {path.name for path in paths}
    model = models.build(models.read_config(tmp_path))
    assert weights.load(model, tmp_path).read_bytes == size


def test_tokenizer_fills_the_vocabulary_and_text_comes_back(tmp_path: Path) -> None:
    make.write(narrow("llama-3.1-8b", bos_token_id=300, eos_token_id=7), tmp_path)
    plane = TextPlane.load(tmp_path)
    text = "def f(x):\n\treturn x  # ünïcode ✓"
    ids = plane.tokenizer.encode(text, add_special_tokens=True)
    assert plane.tokenizer.decode(ids) == text
    assert plane.tokenizer.vocab_size == 512
    assert plane.tokenizer.special_ids == {7, 300}
    assert plane.stop_ids == (7,)
    assert not {7, 300} & set(ids)
    assert all(plane.tokenizer.token_bytes(i) for i in range(512) if i not in (7, 300))
    assert plane.template is not None
