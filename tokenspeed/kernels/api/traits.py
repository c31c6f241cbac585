# SPDX-License-Identifier: MIT
"""The vocabulary of traits: one name, one meaning, over all ops; and the tolerances that go with the dtypes.

Ops list traits from here, with their own test grid where the common one does not fit. `BF16`, `FP32` are the
dtypes a model may run in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tokenspeed.kernels.spec import Tolerance, Trait, Traits, TraitValue

BF16, FP32 = torch.bfloat16, torch.float32

DTYPE = Trait(
    "dtype", (BF16, FP32), "of activations, native weights and KV", choices=(BF16, FP32, torch.float16)
)
FORMAT = Trait(
    "format",
    ("native", "int8", "fp8_block"),
    "how weights are stored; int8 and fp8_block are weight-only",
    default="native",
    choices=("native", "int8", "fp8_block"),
)
KV = Trait(
    "kv",
    ("native", "fp8"),
    "how the context is held; fp8: e4m3 with a scale a vector (`kernels.fp8`)",
    default="native",
    choices=("native", "fp8"),
)
INTERLEAVED = Trait(
    "interleaved", (False, True), "rotary pairs are (2i, 2i+1) instead of (i, i+rot/2)", default=False
)


def count(name: str, grid: tuple[int, ...], meaning: str) -> Trait:
    """A trait that counts something and has no default."""
    return Trait(name, grid, meaning)


HEADS = count("heads", (4, 16, 6), "query heads on this rank (H)")
KV_HEADS = count("kv_heads", (2, 4, 1), "kv heads on this rank (K)")
HEAD_DIM = count("head_dim", (64, 128), "dimensions of a head (D)")
LATENT = count("latent", (512, 64), "dimensions of the MLA latent (L)")
ROPE = count("rope", (64, 16), "dimensions of the shared rotary key (Dr)")
BLOCK_TOKENS = count("block_tokens", (64, 16), "tokens per KV block (P)")
WIDTH = count("width", (256, 1024, 72), "channels of the activations (C)")

ROUNDED: Mapping[torch.dtype, Tolerance] = {
    FP32: Tolerance(2e-5, 2e-5),
    BF16: Tolerance(4e-3, 8e-3),
    torch.float16: Tolerance(1e-3, 2e-3),
}
"""For ops that round once at the end."""

SUMMED: Mapping[torch.dtype, Tolerance] = {
    FP32: Tolerance(5e-5, 5e-5),
    BF16: Tolerance(8e-3, 1.6e-2),
    torch.float16: Tolerance(2e-3, 4e-3),
}
"""For ops that may round intermediates (probabilities, gated activations) to the dtype before a long sum."""


def dtype_of(traits: Traits) -> torch.dtype:
    """Return the trait `dtype` as a torch dtype."""
    value = traits["dtype"]
    assert isinstance(value, torch.dtype)
    return value


def whole(traits: Traits, name: str) -> int:
    """Return a counting trait as an int."""
    value: TraitValue = traits[name]
    assert isinstance(value, int)
    return value
