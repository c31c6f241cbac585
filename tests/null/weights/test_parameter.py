# SPDX-License-Identifier: MIT
"""Scales are laid out like the values they belong to, or the values cannot be kept encoded."""

from __future__ import annotations

from tokenspeed.weights.parameter import Fill, Parameter, in_blocks


def parameter(shape: tuple[int, ...], *fills: Fill) -> Parameter:
    return Parameter("p.weight", shape, "model", "normal", fills, tuple(fill.source for fill in fills))


def rows(source: str, start: int, stop: int, at: int, *, of: int, columns: slice, wide: int) -> Fill:
    width = columns.stop - columns.start
    into = (slice(at, at + stop - start), slice(0, width))
    return Fill(source, (of, wide), (slice(start, stop), columns), into)


def test_joined_rows_keep_their_order_and_a_ragged_end() -> None:
    q = rows("q", 0, 256, 0, of=256, columns=slice(0, 200), wide=200)
    kv = rows("kv", 0, 70, 256, of=70, columns=slice(0, 200), wide=200)
    pair = in_blocks(parameter((326, 200), q, kv), 128)
    assert pair is not None
    values, scales = pair
    assert (values.dtype, values.fills, values.bytes(2)) == ("float8", (q, kv), 326 * 200)
    assert (scales.shape, scales.dtype, scales.bytes(2)) == ((3, 2), "float32", 24)
    assert scales.sources == ("q_scale_inv", "kv_scale_inv")
    assert scales.fills == (
        Fill("q_scale_inv", (2, 2), (slice(0, 2), slice(0, 2)), (slice(0, 2), slice(0, 2))),
        Fill("kv_scale_inv", (1, 2), (slice(0, 1), slice(0, 2)), (slice(2, 3), slice(0, 2))),
    )


def test_a_stacked_experts_share_of_a_rank_keeps_its_place() -> None:
    half = Fill(
        "up", (512, 384), (slice(256, 512), slice(0, 384)), (slice(3, 4), slice(256, 512), slice(0, 384))
    )
    pair = in_blocks(parameter((8, 512, 384), half), 128)
    assert pair is not None
    (fill,) = pair[1].fills
    assert pair[1].shape == (8, 4, 3)
    assert fill.take == (slice(2, 4), slice(0, 3))
    assert fill.into == (slice(3, 4), slice(2, 4), slice(0, 3))


def test_blocks_that_are_cut_cannot_be_kept() -> None:
    whole = slice(0, 256)
    assert (
        in_blocks(parameter((64, 256), rows("w", 64, 128, 0, of=128, columns=whole, wide=256)), 128) is None
    )
    assert in_blocks(parameter((64, 256), rows("w", 0, 64, 0, of=128, columns=whole, wide=256)), 128) is None
    assert (
        in_blocks(parameter((128, 64), rows("w", 0, 128, 0, of=128, columns=slice(0, 64), wide=256)), 128)
        is None
    )
    seam = (
        rows("a", 0, 64, 0, of=64, columns=whole, wide=256),
        rows("b", 0, 64, 64, of=64, columns=whole, wide=256),
    )
    assert in_blocks(parameter((128, 256), *seam), 128) is None


def test_vectors_and_parameters_of_other_ranks_have_no_scales() -> None:
    assert in_blocks(parameter((256,), Fill("b", (256,), (slice(0, 256),), (slice(0, 256),))), 128) is None
    assert in_blocks(parameter((256, 256)), 128) is None
