# SPDX-License-Identifier: MIT
"""What do 8 bits cost in accuracy? A trained model's predictions of a text, weights and context in each format.

    python benchmarks/eight_bits.py --out FILE [--model DIRECTORY] [--text FILE] [--tokens 1024] [--device cpu|cuda]

In: a checkpoint (the bundled one, a DeepSeek-V3 in small, when absent) and a text (this repository's own code). Out:
one JSON, a row a format: relative error of the logits, how often the likeliest token is the same, the mean divergence
of the distributions and the cross-entropy of the text, all against float32. One pass over the text: no token is drawn.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tokenspeed import models, weights
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.engine.source import BUNDLED
from tokenspeed.exec.arena import Arena
from tokenspeed.layers.step import StepInputs

BLOCK_TOKENS = 64
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "context fp8": {"kv_format": "fp8"},
    "weights fp8_block": {"quantization": "fp8_block"},
    "weights int8": {"quantization": "int8"},
    "weights fp8_block, context fp8": {"quantization": "fp8_block", "kv_format": "fp8"},
}


def logits(directory: Path, ids: Tensor, device: torch.device, **options: Any) -> Tensor:
    """Logits [T, V] of every token, in float32 where `options` do not say otherwise."""
    settings: dict[str, Any] = {"dtype": "float32", **options}
    model = models.build(models.read_config(directory), device=device, block_tokens=BLOCK_TOKENS, **settings)
    weights.load(model, directory)
    blocks = -(-len(ids) // BLOCK_TOKENS)
    arena = Arena(model.kv_spec, blocks=blocks, block_tokens=BLOCK_TOKENS, dtype=model.dtype, device=device)
    starts, contexts = np.array([0, len(ids)], np.int32), np.array([len(ids)], np.int32)
    at = torch.arange(len(ids), device=device)
    inputs = StepInputs(
        token_ids=ids.to(device),
        positions=at,
        write_index=at,
        decode_rows=0,
        rows=1,
        row_starts=torch.from_numpy(starts).to(device),
        context_lens=torch.from_numpy(contexts).to(device),
        block_table=torch.arange(blocks, dtype=torch.int32, device=device).unsqueeze(0),
        sample_index=at,
        row_starts_np=starts,
        context_lens_np=contexts,
    )
    with torch.inference_mode():
        return model.forward(inputs, arena).float().cpu()


def compared(got: Tensor, want: Tensor, ids: Tensor) -> dict[str, float]:
    """How far apart two predictions of one text are."""
    said, meant = got.log_softmax(-1), want.log_softmax(-1)
    return {
        "relative_error": float((got - want).norm() / want.norm()),
        "same_first": float((got.argmax(-1) == want.argmax(-1)).float().mean()),
        "divergence": float((meant.exp() * (meant - said)).sum(-1).mean()),
        "cross_entropy": float(torch.nn.functional.cross_entropy(got[:-1], ids[1:])),
    }


def main() -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--model", type=Path, default=BUNDLED)
    made.add_argument("--text", type=Path, default=Path(models.__file__).with_name("deepseek.py"))
    made.add_argument("--tokens", type=int, default=1024)
    made.add_argument("--device", default="cpu")
    options = made.parse_args()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(options.text.read_text()).ids[: options.tokens])
    device = torch.device(options.device)
    want = logits(options.model, ids, device)
    rows = {"float32": compared(want, want, ids)}
    for name, settings in FORMATS.items():
        rows[name] = compared(logits(options.model, ids, device, **settings), want, ids)
    for name, row in rows.items():
        print(f"{name:32}", *(f"{key} {value:.4f}" for key, value in row.items()))
    record = {
        "benchmark": "eight_bits", "commit": commit(), "machine": asdict(machine()), "device": str(device),
        "model": options.model.name, "text": options.text.name, "tokens": len(ids), "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
