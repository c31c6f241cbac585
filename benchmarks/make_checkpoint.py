# SPDX-License-Identifier: MIT
"""Write a random checkpoint of a true architecture in the true Hugging Face file format.

    python benchmarks/make_checkpoint.py qwen3-0.6b OUT [--device cuda] [--layers N] [--vocab V]

In: a shape by name. Out: a directory with config.json and sharded safetensors in bfloat16: normal weights (std 0.02),
norms of one, seeded. Tensors are named as on the hub (one tensor per expert projection). No tokenizer is written:
these checkpoints are driven by token ids. Names and shapes are written out here so that the writer needs neither
transformers nor the engine, and cannot share a mistake with the loader it feeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD_BYTES_MAX = 4 << 30


def _deepseek(**over: Any) -> dict[str, Any]:
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
        "attention_bias": False, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "first_k_dense_replace": 1,
        "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02,
        "routed_scaling_factor": 2.446, "max_position_embeddings": 131072, **over,
    }  # fmt: skip


def _dense(kind: str, **over: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "hidden_act": "silu", "attention_bias": False, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 0,
        "eos_token_id": 1, "initializer_range": 0.02, "attention_dropout": 0.0, **over,
    }  # fmt: skip


# Figures from the models' own config.json; cpu-b is the DeepSeek-V2-style shape of the CPU comparison.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _dense(
        "Qwen3ForCausalLM", model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=32000, rope_theta=1e6,
        max_position_embeddings=40960, tie_word_embeddings=True, use_sliding_window=False, sliding_window=None,
    ),
    "qwen3-8b": _dense(
        "Qwen3ForCausalLM", model_type="qwen3", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936, rope_theta=1e6,
        max_position_embeddings=131072, use_sliding_window=False, sliding_window=None,
    ),
    "qwen3-30b-a3b": _dense(
        "Qwen3MoeForCausalLM", model_type="qwen3_moe", hidden_size=2048, intermediate_size=6144,
        moe_intermediate_size=768, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
        num_experts=128, num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
        vocab_size=151936, rope_theta=1e6, max_position_embeddings=131072, use_sliding_window=False,
    ),
    "llama-3.1-8b": _dense(
        "LlamaForCausalLM", model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=128256, rope_theta=5e5,
        rms_norm_eps=1e-5, max_position_embeddings=131072,
    ),
    "cpu-b": _deepseek(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", hidden_size=1024, intermediate_size=4096,
        moe_intermediate_size=512, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=16,
        n_routed_experts=16, num_experts_per_tok=4, n_shared_experts=2, vocab_size=32000, rope_theta=10000.0,
        scoring_func="softmax", topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
        max_position_embeddings=16384, rms_norm_eps=1e-6,
    ),
    "deepseek-v2-lite": _deepseek(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", hidden_size=2048, intermediate_size=10944,
        moe_intermediate_size=1408, num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16,
        n_routed_experts=64, num_experts_per_tok=6, n_shared_experts=2, vocab_size=102400, rope_theta=10000.0,
        scoring_func="softmax", topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
        max_position_embeddings=163840, rms_norm_eps=1e-6,
    ),
    "moonlight-16b-a3b": _deepseek(
        hidden_size=2048, intermediate_size=11264, moe_intermediate_size=1408, num_hidden_layers=27,
        num_attention_heads=16, num_key_value_heads=16, n_routed_experts=64, num_experts_per_tok=6,
        n_shared_experts=2, vocab_size=163840,
    ),
    "kimi-k2-slice": _deepseek(
        hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=64, num_key_value_heads=64, n_routed_experts=48, num_experts_per_tok=8,
        n_shared_experts=1, q_lora_rank=1536, routed_scaling_factor=2.827, vocab_size=163840,
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
        size = config["head_dim"]
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


def write(config: dict[str, Any], out: Path, *, device: str = "cpu", seed: int = 0) -> int:
    """Write the checkpoint to `out`; returns its size in bytes."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    generator = torch.Generator(device).manual_seed(seed)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    shard_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal shard, shard_bytes
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, shard_bytes = {}, 0

    for name, shape in tensors(config):
        if name.endswith(("norm.weight",)):
            value = torch.ones(shape, dtype=torch.bfloat16)
        elif name.endswith("e_score_correction_bias"):
            value = torch.zeros(shape, dtype=torch.float32)
        else:
            value = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(
                0.0, 0.02, generator=generator
            )
        shard[name] = value.cpu()
        shard_bytes += value.nbytes
        total_bytes += value.nbytes
        if shard_bytes >= SHARD_BYTES_MAX:
            flush()
    if shard:
        flush()
    text = json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": index}, indent=1)
    (out / "model.safetensors.index.json").write_text(text)
    return total_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random checkpoint of a true architecture.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu", help="where the random numbers are drawn (cuda is faster)")
    parser.add_argument("--layers", type=int, help="write only this many layers")
    parser.add_argument("--vocab", type=int, help="another vocabulary size")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = dict(SHAPES[args.shape])
    if args.layers:
        config["num_hidden_layers"] = args.layers
    if args.vocab:
        config["vocab_size"] = args.vocab
    size = write(config, args.out, device=args.device, seed=args.seed)
    print(f"{args.out}: {args.shape}, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
