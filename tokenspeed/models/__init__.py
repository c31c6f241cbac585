# SPDX-License-Identifier: MIT
"""Models: one file per family, a registry, and what a family's file is made into.

model = models.build(hf_config, mesh=Mesh(), dtype=None, device="cpu")
weights.load(model, directory)            # or weights.load_dummy(model)
logits = model.forward(inputs, arena)     # [S, V] float32
"""

from tokenspeed.layers.kv import GQA, MLA, KVSpec
from tokenspeed.models.model import Facts, Model
from tokenspeed.models.registry import ARCHITECTURES, build, checkpoint_dtype, is_fp8_block, read_config

__all__ = [
    "ARCHITECTURES",
    "GQA",
    "MLA",
    "Facts",
    "KVSpec",
    "Model",
    "build",
    "checkpoint_dtype",
    "is_fp8_block",
    "read_config",
]
