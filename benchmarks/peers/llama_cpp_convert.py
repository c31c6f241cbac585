# SPDX-License-Identifier: MIT
"""Convert a checkpoint to GGUF, to be driven by token ids, with llama.cpp's own converter.

    python benchmarks/peers/llama_cpp_convert.py LLAMA_CPP_SOURCE CHECKPOINT OUT.gguf

llama.cpp's converter wants a tokenizer it knows; the random checkpoints have none. This drives the same converter and
only replaces the vocabulary step by a placeholder of plain ASCII for every id (its server needs some text for each, and
streams no id while a character is incomplete), and states a query latent of 0 where the model has none; every tensor
goes through the peer's code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint to GGUF (bf16), for prompts of token ids."
    )
    parser.add_argument("source", type=Path, help="llama.cpp's source tree")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    sys.path[:0] = [str(args.source), str(args.source / "gguf-py")]
    import conversion
    import gguf

    hparams = conversion.ModelBase.load_hparams(args.checkpoint, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    base: Any = conversion.get_model_class(architecture)

    def set_vocab(self: Any) -> None:
        size = self.hparams["vocab_size"]
        self.gguf_writer.add_tokenizer_model("gpt2")
        self.gguf_writer.add_tokenizer_pre("gpt-2")
        self.gguf_writer.add_token_list([f"w{each}" for each in range(size)])
        self.gguf_writer.add_token_types([gguf.TokenType.NORMAL] * size)
        self.gguf_writer.add_token_merges(["w 0"])
        self.gguf_writer.add_eos_token_id(self.hparams["eos_token_id"])
        self.gguf_writer.add_vocab_size(size)

    parameters = base.set_gguf_parameters

    def set_gguf_parameters(self: Any) -> None:
        parameters(self)
        # llama.cpp knows the models without a query latent by their layer counts; any other must say so.
        if "kv_lora_rank" in self.hparams and not self.hparams.get("q_lora_rank"):
            self.gguf_writer.add_q_lora_rank(0)

    base.set_vocab = set_vocab
    base.set_gguf_parameters = set_gguf_parameters
    model = base(args.checkpoint, gguf.LlamaFileType.MOSTLY_BF16, args.out)
    model.write()


if __name__ == "__main__":
    main()
