# SPDX-License-Identifier: MIT
"""Write a random checkpoint of a true architecture in the true Hugging Face file format, in seconds on a GPU machine.

    python benchmarks/make_checkpoint.py moonlight-16b-a3b OUT [--device cuda] [--fp8] [--layers N] [--vocab V]

In: a shape by name. Out: a directory with config.json, sharded safetensors and their index, and a byte-level tokenizer
of the vocabulary's size. Weights are normal (std 0.02), norms one, the bias that helps to choose experts normal
(std 0.01). A tensor's values depend on the seed and its name alone, whatever else is written and in whatever order.
With `--fp8` projections are stored as DeepSeek stores them: e4m3 with one float32 scale per 128 x 128 block.

One thread per shard: values are drawn on the device, pass through a pinned buffer and are written, so that a shard's
lock in the file system has one owner. Names and shapes are written out here so that the writer needs neither
transformers nor the engine, and cannot share a mistake with the loader it feeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import tokenizers
import torch

SHARD_BYTES_MAX = 2_000_000_000
STAGING_BYTES = 32 << 20
THREADS_MAX = 16
WEIGHT_STD, BIAS_STD = 0.02, 0.01
FP8_BLOCK, FP8_MAX = 128, 448.0
DTYPES = {
    "bfloat16": (torch.bfloat16, "BF16"),
    "float16": (torch.float16, "F16"),
    "float32": (torch.float32, "F32"),
}
FP8_CONFIG = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
}  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _deepseek(**over: Any) -> dict[str, Any]:
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
        "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "bos_token_id": 163584, "eos_token_id": 163585, "initializer_range": 0.02, "routed_scaling_factor": 2.446,
        "max_position_embeddings": 131072, "pretraining_tp": 1, **over,
    }  # fmt: skip


def _dense(kind: str, **over: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "hidden_act": "silu", "attention_bias": False, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "bos_token_id": 151643, "eos_token_id": 151645, "initializer_range": 0.02, "attention_dropout": 0.0, **over,
    }  # fmt: skip


def _deepseek_v2(**over: Any) -> dict[str, Any]:
    return _deepseek(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", scoring_func="softmax",
        topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0, rope_theta=10000.0, rms_norm_eps=1e-6,
        **over,
    )  # fmt: skip


# Figures from the models' own config.json, but for these: positions reach 131072 where a model's own are fewer, so that
# one grid of contexts runs on all; qwen3-0.6b and cpu-b are the two shapes of the CPU comparison, with a small
# vocabulary; kimi-k2-slice has 6 of 61 layers and 48 of 384 experts, and plain rope.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _dense(
        "Qwen3ForCausalLM", model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=32000, rope_theta=1e6,
        max_position_embeddings=40960, tie_word_embeddings=True, use_sliding_window=False, sliding_window=None,
        bos_token_id=0, eos_token_id=1,
    ),
    "qwen3-8b": _dense(
        "Qwen3ForCausalLM", model_type="qwen3", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936, rope_theta=1e6,
        max_position_embeddings=131072, use_sliding_window=False, sliding_window=None, max_window_layers=36,
    ),
    "qwen3-30b-a3b": _dense(
        "Qwen3MoeForCausalLM", model_type="qwen3_moe", hidden_size=2048, intermediate_size=6144,
        moe_intermediate_size=768, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
        num_experts=128, num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
        vocab_size=151936, rope_theta=1e6, max_position_embeddings=131072, use_sliding_window=False,
        sliding_window=None, max_window_layers=48, output_router_logits=False, router_aux_loss_coef=0.001,
    ),
    "llama-3.1-8b": _dense(
        "LlamaForCausalLM", model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=128256, rope_theta=5e5,
        rms_norm_eps=1e-5, max_position_embeddings=131072, mlp_bias=False, bos_token_id=128000, eos_token_id=128001,
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "cpu-b": _deepseek_v2(
        hidden_size=1024, intermediate_size=4096, moe_intermediate_size=512, num_hidden_layers=12,
        num_attention_heads=16, num_key_value_heads=16, n_routed_experts=16, num_experts_per_tok=4,
        n_shared_experts=2, vocab_size=32000, max_position_embeddings=16384, bos_token_id=0, eos_token_id=1,
    ),
    "deepseek-v2-lite": _deepseek_v2(
        hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=27,
        num_attention_heads=16, num_key_value_heads=16, n_routed_experts=64, num_experts_per_tok=6,
        n_shared_experts=2, vocab_size=102400, max_position_embeddings=163840, bos_token_id=100000,
        eos_token_id=100001,
        rope_scaling={
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 0.707, "mscale_all_dim": 0.707,
        },
    ),
    "moonlight-16b-a3b": _deepseek(
        hidden_size=2048, intermediate_size=11264, moe_intermediate_size=1408, num_hidden_layers=27,
        num_attention_heads=16, num_key_value_heads=16, n_routed_experts=64, num_experts_per_tok=6,
        n_shared_experts=2, vocab_size=163840,
    ),
    "kimi-k2-slice": _deepseek(
        hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=64, num_key_value_heads=64, n_routed_experts=48, num_experts_per_tok=8,
        n_shared_experts=1, q_lora_rank=1536, routed_scaling_factor=2.827, vocab_size=163840, rms_norm_eps=1e-6,
    ),
}  # fmt: skip


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint as (hub name, shape), in file order."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)
        yield from _attention(config, f"{at}.self_attn")
        yield from _mlp(config, f"{at}.mlp", layer)
    yield "model.norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, width)


def _attention(config: dict[str, Any], at: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if "kv_lora_rank" not in config:
        size = config.get("head_dim", width // heads)
        for name, count in (
            ("q", heads),
            ("k", config["num_key_value_heads"]),
            ("v", config["num_key_value_heads"]),
        ):
            yield f"{at}.{name}_proj.weight", (count * size, width)
        yield f"{at}.o_proj.weight", (width, heads * size)
        if config["model_type"].startswith("qwen3"):
            yield f"{at}.q_norm.weight", (size,)
            yield f"{at}.k_norm.weight", (size,)
        return
    latent, nope, rope = config["kv_lora_rank"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    if rank := config["q_lora_rank"]:
        yield f"{at}.q_a_proj.weight", (rank, width)
        yield f"{at}.q_a_layernorm.weight", (rank,)
        yield f"{at}.q_b_proj.weight", (heads * (nope + rope), rank)
    else:
        yield f"{at}.q_proj.weight", (heads * (nope + rope), width)
    yield f"{at}.kv_a_proj_with_mqa.weight", (latent + rope, width)
    yield f"{at}.kv_a_layernorm.weight", (latent,)
    yield f"{at}.kv_b_proj.weight", (heads * (nope + config["v_head_dim"]), latent)
    yield f"{at}.o_proj.weight", (width, heads * config["v_head_dim"])


def _mlp(config: dict[str, Any], at: str, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = config["hidden_size"]
    experts = config.get("n_routed_experts", config.get("num_experts"))
    if experts is None or layer < config.get("first_k_dense_replace", 0):
        yield from _gated(at, width, config["intermediate_size"])
        return
    inner = config["moe_intermediate_size"]
    yield f"{at}.gate.weight", (experts, width)
    if config.get("topk_method") == "noaux_tc":
        yield f"{at}.gate.e_score_correction_bias", (experts,)
    for expert in range(experts):
        yield from _gated(f"{at}.experts.{expert}", width, inner)
    if shared := config.get("n_shared_experts"):
        yield from _gated(f"{at}.shared_experts", width, inner * shared)


def _gated(at: str, width: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}.gate_proj.weight", (inner, width)
    yield f"{at}.up_proj.weight", (inner, width)
    yield f"{at}.down_proj.weight", (width, inner)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file. A scale comes right after the weight it belongs to and is made with it."""

    name: str
    kind: str
    """As safetensors spells it: BF16, F32, F8_E4M3."""
    shape: tuple[int, ...]
    item_bytes: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes


def entries(config: dict[str, Any]) -> Iterator[list[Entry]]:
    """Every tensor as it is stored; a quantised weight together with its scale."""
    dtype, kind = DTYPES[config["torch_dtype"]]
    for name, shape in tensors(config):
        if name.endswith("e_score_correction_bias"):
            yield [Entry(name, "F32", shape, 4)]
        elif "quantization_config" in config and "_proj" in name:
            blocks = tuple(-(-size // FP8_BLOCK) for size in shape)
            yield [Entry(name, "F8_E4M3", shape, 1), Entry(f"{name}_scale_inv", "F32", blocks, 4)]
        else:
            yield [Entry(name, kind, shape, dtype.itemsize)]


def _shards(config: dict[str, Any]) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    for group in entries(config):
        if shards[-1] and sum(e.bytes for e in [*shards[-1], *group]) > SHARD_BYTES_MAX:
            shards.append([])
        shards[-1] += group
    return shards


def draw(
    name: str, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str, seed: int
) -> torch.Tensor:
    """The values of one tensor; the same on one device whatever was drawn before."""
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=dtype, device=device)
    bias = name.endswith("e_score_correction_bias")
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
    value = torch.empty(shape, dtype=torch.float32 if bias else dtype, device=device)
    return value.normal_(0.0, BIAS_STD if bias else WEIGHT_STD, generator=generator)


def to_block_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [O, I] -> e4m3 [O, I] and float32 scales [ceil(O / 128), ceil(I / 128)]; weight = e4m3 * scale."""
    rows, columns = weight.shape
    high, wide = -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
    padded = torch.zeros(high * FP8_BLOCK, wide * FP8_BLOCK, dtype=torch.float32, device=weight.device)
    padded[:rows, :columns] = weight
    blocks = padded.view(high, FP8_BLOCK, wide, FP8_BLOCK)
    scale = blocks.abs().amax((1, 3)).clamp_min(1e-12) / FP8_MAX
    blocks /= scale[:, None, :, None]
    return padded[:rows, :columns].to(torch.float8_e4m3fn), scale


class ShardWriter:
    """Writes one shard from first byte to last, through a pinned buffer where the values lie on a GPU."""

    def __init__(self, file: BinaryIO, device: torch.device) -> None:
        self._file = file
        self._staging = (
            torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True) if device.type == "cuda" else None
        )

    def header(self, shard: list[Entry]) -> None:
        """The names, dtypes, shapes and offsets that come before the data."""
        about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for entry in shard:
            about[entry.name] = {
                "dtype": entry.kind,
                "shape": entry.shape,
                "data_offsets": [offset, offset + entry.bytes],
            }
            offset += entry.bytes
        text = json.dumps(about, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def data(self, value: torch.Tensor) -> None:
        """The bytes of a tensor."""
        flat = value.contiguous().view(-1).view(torch.uint8)
        if self._staging is None:
            self._write(flat)
            return
        for piece in flat.split(STAGING_BYTES):
            self._write(self._staging[: piece.numel()].copy_(piece))

    def _write(self, value: torch.Tensor) -> None:
        left = memoryview(value.numpy())
        while left:  # one call writes at most 2 GiB
            left = left[self._file.write(left) :]


def _write_shard(path: Path, shard: list[Entry], dtype: torch.dtype, device: torch.device, seed: int) -> None:
    stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
    with stream, open(path, "wb", buffering=0) as file:
        writer = ShardWriter(file, device)
        writer.header(shard)
        for entry in shard:
            if entry.name.endswith("_scale_inv"):
                continue
            value = draw(entry.name, entry.shape, dtype=dtype, device=device, seed=seed)
            for part in to_block_fp8(value) if entry.kind == "F8_E4M3" else (value,):
                writer.data(part)


def write(config: dict[str, Any], out: Path, *, device: str = "cpu", seed: int = 0) -> int:
    """Write the checkpoint to `out`; returns its size in bytes."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(config, out)
    dtype, _ = DTYPES[config["torch_dtype"]]
    shards = _shards(config)
    names = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    threads = min(THREADS_MAX, len(shards), os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(_write_shard, out / name, shard, dtype, torch.device(device), seed)
            for name, shard in zip(names, shards, strict=True)
        ]
        for job in jobs:
            job.result()
    total_bytes = sum(entry.bytes for shard in shards for entry in shard)
    where = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    text = json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": where}, indent=1)
    (out / "model.safetensors.index.json").write_text(text)
    return total_bytes


def write_tokenizer(config: dict[str, Any], out: Path) -> None:
    """A byte-level tokenizer with a text for every id: text is encoded byte by byte, ids beyond decode as numbers."""
    special = {config["bos_token_id"]: "<|begin|>", config["eos_token_id"]: "<|end|>"}
    free = (index for index in range(config["vocab_size"]) if index not in special)
    vocabulary = {token: index for index, token in special.items()}
    vocabulary.update(zip(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), free, strict=False))
    vocabulary.update({f"Ġ{index}": index for index in free})
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    bos, eos = special.values()
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random checkpoint of a true architecture.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--device", help="where the random numbers are drawn (default: cuda where there is a GPU)"
    )
    parser.add_argument("--layers", type=int, help="write only this many layers")
    parser.add_argument("--vocab", type=int, help="another vocabulary size; bos and eos become 0 and 1")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument(
        "--fp8", action="store_true", help="projections as e4m3 with a scale per 128 x 128 block"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = {**SHAPES[args.shape], "torch_dtype": args.dtype}
    if args.layers:
        config["num_hidden_layers"] = args.layers
    if args.vocab:
        config.update(vocab_size=args.vocab, bos_token_id=0, eos_token_id=1)
    if args.fp8:
        config["quantization_config"] = FP8_CONFIG
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    size = write(config, args.out, device=device, seed=args.seed)
    print(f"{args.out}: {args.shape}, {size / 1e9:.2f} GB in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
