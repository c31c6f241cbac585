# SPDX-License-Identifier: MIT
"""The arena: shapes by kind of layer, zero at first, a size that cannot be had is a SetupError, scrubbing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.exec.arena import Arena, bytes_per_token
from tokenspeed.kernels.fp8 import Latents, quantised
from tokenspeed.layers.kv import GQA, MLA

CPU = torch.device("cpu")
SPECS = [GQA(kv_heads=2, head_dim=8), MLA(latent=16, rope=4)]


def test_layers_have_the_shapes_of_their_kind() -> None:
    arena = Arena(SPECS, blocks=5, block_tokens=4, dtype=torch.bfloat16, device=CPU)
    gqa, mla = arena.layers
    assert isinstance(gqa, tuple)
    assert isinstance(mla, torch.Tensor)
    assert [tuple(tensor.shape) for tensor in gqa] == [(5, 4, 2, 8)] * 2
    assert tuple(mla.shape) == (5, 4, 20)
    assert {tensor.dtype for tensor in (*gqa, mla)} == {torch.bfloat16}
    assert arena.nbytes == 5 * 4 * bytes_per_token(SPECS, torch.bfloat16) == 5 * 4 * (32 + 20) * 2


def test_everything_is_zero_and_writable() -> None:
    arena = Arena(SPECS, blocks=3, block_tokens=4, dtype=torch.float32, device=CPU)
    for layer in arena.layers:
        for tensor in layer if isinstance(layer, tuple) else (layer,):
            assert not tensor.any()
            tensor.fill_(1.0)
            assert tensor.sum() == tensor.numel()


def test_a_size_no_machine_has_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="smaller --kv-cache-bytes"):
        Arena(SPECS, blocks=1 << 50, block_tokens=4, dtype=torch.float32, device=CPU)


def test_scrubbing_clears_what_is_not_finite_and_nothing_else() -> None:
    arena = Arena(SPECS, blocks=4, block_tokens=2, dtype=torch.float32, device=CPU)
    keys, values = arena.layers[0]
    keys.copy_(torch.randn(keys.shape))
    keys[1, 0, 0, 0] = torch.nan
    keys[2, 1, 1, 3] = torch.inf
    values[3] = torch.nan
    before = keys.clone()
    arena.scrub(torch.tensor([1, 2]))
    expected = before.clone()
    expected[1, 0, 0, 0] = expected[2, 1, 1, 3] = 0.0
    assert torch.equal(keys, expected)
    assert values[3].isnan().all()


def test_a_context_in_8_bits_is_values_and_scales() -> None:
    specs = [GQA(8, 128, "fp8"), MLA(512, 64, "fp8")]
    assert [bytes_per_token([spec], torch.bfloat16) for spec in specs] == [2 * 8 * (128 + 4), 512 + 128 + 4]
    arena = Arena(specs, blocks=3, block_tokens=16, dtype=torch.bfloat16, device=CPU)
    assert arena.nbytes == 3 * 16 * bytes_per_token(specs, torch.bfloat16)
    heads, latents = arena.layers
    assert isinstance(heads, tuple)
    assert isinstance(latents, Latents)
    assert [(part.values.dtype, tuple(part.scale.shape)) for part in heads] == [
        (torch.float8_e4m3fn, (3, 16, 8))
    ] * 2
    assert (latents.rope.dtype, tuple(latents.scale.shape)) == (torch.bfloat16, (3, 16))


def test_faults_in_8_bits_show_in_the_scale_and_are_scrubbed() -> None:
    arena = Arena([MLA(8, 4, "fp8")], blocks=4, block_tokens=2, dtype=torch.float32, device=CPU)
    (latents,) = arena.layers
    assert isinstance(latents, Latents)
    vectors = torch.randn(4, 2, 8)
    vectors[1, 1, 3] = torch.nan
    values, scale = quantised(vectors)
    latents.values.copy_(values)
    latents.scale.copy_(scale)
    assert arena.finite_at(torch.arange(8)).tolist() == [index != 3 for index in range(8)]
    arena.scrub(torch.tensor([1]))
    assert arena.finite_at(torch.arange(8)).all()
    assert not latents.values.float().isnan().any()
    assert torch.equal(latents.values[2].float(), values[2].float())


def test_cpu_arena_is_private_memory() -> None:
    """A shared mapping would be shmem, which takes no huge pages."""
    arena = Arena([MLA(8, 4)], blocks=4, block_tokens=16, dtype=torch.float32, device=CPU)
    (latent,) = arena.layers
    assert isinstance(latent, torch.Tensor)
    address = latent.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, *_ = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            assert mode.endswith("p")
            return
    raise AssertionError("the arena is not mapped")
