# SPDX-License-Identifier: MIT
"""Convert a token-id-only checkpoint to GGUF with llama.cpp's own converter.

    python benchmarks/peers/llama_cpp_convert.py LLAMA_CPP_SOURCE CHECKPOINT OUT.gguf

llama.cpp's converter wants a tokenizer it knows; the random checkpoints have none. This drives the same converter and
only replaces the vocabulary step by the format's own "no vocabulary" declaration, so every tensor goes through the
peer's code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a checkpoint without a tokenizer to GGUF (bf16).")
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
        self.gguf_writer.add_tokenizer_model("no_vocab")
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    base.set_vocab = set_vocab
    model = base(args.checkpoint, gguf.LlamaFileType.MOSTLY_BF16, args.out)
    model.write()


if __name__ == "__main__":
    main()
