# SPDX-License-Identifier: MIT
"""Stamps find every planted fault and nothing else. `benchmarks/kv_integrity.py` does the same at full scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenspeed.exec.arena import Arena
from tokenspeed.exec.stamps import SAMPLE, Checksums, Stamps
from tokenspeed.layers.kv import GQA, MLA, KVSpec

BLOCKS, BLOCK_TOKENS = 24, 4
SPECS: dict[str, tuple[list[KVSpec], torch.dtype]] = {
    "gqa-bf16": ([GQA(2, 6)] * 3, torch.bfloat16),
    "mla-f32": ([MLA(10, 4)] * 2, torch.float32),
}


@pytest.fixture(params=list(SPECS))
def arena(request: pytest.FixtureRequest) -> Arena:
    specs, dtype = SPECS[request.param]
    made = Arena(specs, blocks=BLOCKS, block_tokens=BLOCK_TOKENS, dtype=dtype, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for tensor in made.tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=generator).to(dtype))
    return made


def names_of(blocks: np.ndarray) -> np.ndarray:
    return (blocks.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)


def stamped(arena: Arena, *, sampled: bool = False, epoch: int = 5) -> tuple[Stamps, np.ndarray, np.ndarray]:
    stamps = Stamps(Checksums(arena), BLOCKS, sampled=sampled, epoch=epoch)
    blocks = np.arange(BLOCKS, dtype=np.int32)
    stamps.freeze(blocks, names_of(blocks))
    return stamps, blocks, names_of(blocks)


def test_sound_blocks_bear_their_stamps(arena: Arena) -> None:
    stamps, blocks, names = stamped(arena)
    random = np.random.default_rng(0)
    for _ in range(200):
        order = random.permutation(BLOCKS)
        assert not stamps.unlike(blocks[order], names[order]).any()


def test_every_flipped_bit_is_found(arena: Arena) -> None:
    stamps, blocks, names = stamped(arena)
    random = np.random.default_rng(2)
    for _ in range(400):
        tensor = arena.tensors()[random.integers(len(arena.tensors()))]
        block = int(random.integers(BLOCKS))
        memory = tensor[block].flatten().view(torch.uint8)
        at, bit = int(random.integers(len(memory))), 1 << int(random.integers(8))
        memory[at] ^= bit
        assert stamps.unlike(blocks, names).nonzero().flatten().tolist() == [block]
        memory[at] ^= bit
    assert not stamps.unlike(blocks, names).any()


def test_swapped_blocks_layers_and_words_are_found(arena: Arena) -> None:
    stamps, blocks, names = stamped(arena)
    for tensor in arena.tensors():
        tensor[[2, 9]] = tensor[[9, 2]].clone()
    assert stamps.unlike(blocks, names).nonzero().flatten().tolist() == [2, 9]
    one, two = arena.tensors()[:2]
    kept = one[4].clone()
    one[4], two[4] = two[4].clone(), kept
    words = one[6].flatten()
    words[[0, 1]] = words[[1, 0]].clone()
    assert stamps.unlike(blocks, names).nonzero().flatten().tolist() == [2, 4, 6, 9]


def test_another_tenant_or_epoch_is_found(arena: Arena) -> None:
    stamps, blocks, names = stamped(arena)
    assert stamps.unlike(blocks, names + np.uint64(1)).all()  # found by another chain of hashes
    stale, _, _ = stamped(arena, epoch=6)
    stale._stamps.copy_(stamps._stamps)
    assert stale.unlike(blocks, names).all()


def test_sampling_looks_at_some_and_is_right_about_them(arena: Arena) -> None:
    stamps, blocks, _ = stamped(arena, sampled=True)
    names = names_of(blocks) // SAMPLE * SAMPLE + (blocks % 2).astype(np.uint64)
    chosen = stamps.chosen(names)
    assert chosen.tolist() == (blocks % 2 == 0).tolist()
    stamps.freeze(blocks, names)
    assert not stamps.unlike(blocks[chosen], names[chosen]).any()
    arena.tensors()[0][2].flatten()[3] += 1
    assert stamps.unlike(blocks[chosen], names[chosen]).sum() == 1


def test_a_packed_block_has_the_checksum_of_its_layers(arena: Arena) -> None:
    checksums = Checksums(arena)
    packed = torch.cat([tensor.flatten(1).view(torch.uint8) for tensor in arena.tensors()], dim=1)
    assert packed.shape[1] == checksums.block_bytes
    assert torch.equal(checksums.of_packed(packed), checksums.of_blocks(torch.arange(BLOCKS)))
