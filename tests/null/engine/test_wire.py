# SPDX-License-Identifier: MIT
"""The wire: what goes in comes out, and bytes that are no message raise one kind of error."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.engine import wire
from tokenspeed.obs.sample import CoreSample, SessionAccount

SAMPLING = SamplingParams(0.5, seed=3, tokens_max=9, stop_ids=(1, 2), logit_bias={5: -1.0}, logprobs=2)
LOGPROB = TokenLogprob(1, -0.5, [(1, -0.5), (2, -3.0)], 1)
REQUESTS = [
    wire.Generate(
        7, wire.ids_bytes(np.arange(5)), SAMPLING, b"salt", 1, 2**63 - 1, 12, None, 3, 4, 70_000, 5, True, 6
    ),
    wire.Abort([1, 2**63 - 1]),
    wire.Flush(),
    wire.Rest(9, "tool", 8),
    wire.Close(9),
    wire.Ask(1, 9),
    wire.Stop(),
]
ACCOUNT = SessionAccount(
    admitted=True, requests=1, requests_live=0, prefill_ns=2, decode_ns=3, queue_us=4, tokens_prompt=5,
    tokens_cached=6, tokens_computed=7, tokens_output=8, block_us=(9, 10, 11), block_tokens=64,
)  # fmt: skip
REPORTS = [
    wire.Deltas([wire.Delta(7, b"\x01\0\0\0", [LOGPROB], "stop", 16)], 4),
    wire.Refused(3, "door_full", 4_000_000),
    wire.SessionReport(1, None),
    wire.SessionReport(2, ACCOUNT),
    wire.Ready(1, "cpu: a CPU", 100, 4096, 16, 64, 8, 32, True, [("dtype", "bfloat16", "the checkpoint's")]),
    wire.Failed("no such model"),
    wire.Stats(1, CoreSample(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, [1, 2], [1, 2, 3, 4], 14, 15, 16)),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda m: type(m).__name__)
def test_requests_survive_the_wire(message: wire.Request) -> None:
    assert wire.decode_request(wire.encode(message)) == message


@pytest.mark.parametrize("message", REPORTS, ids=lambda m: type(m).__name__)
def test_reports_survive_the_wire(message: wire.Report) -> None:
    assert wire.decode_report(wire.encode(message)) == message


def test_directions_do_not_mix() -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_request(wire.encode(wire.Failed("x")))
    with pytest.raises(msgspec.ValidationError):
        wire.decode_report(wire.encode(wire.Stop()))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_msgspec_errors(data: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_report):
        with contextlib.suppress(msgspec.MsgspecError):
            decode(data)


@given(st.sampled_from(REQUESTS), st.data())
def test_damaged_frames_decode_or_raise_msgspec_errors(message: wire.Request, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(message))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    for damaged in (bytes(frame), bytes(frame[:cut])):
        with contextlib.suppress(msgspec.MsgspecError):
            wire.decode_request(damaged)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=50))
def test_ids_round_trip(ids: list[int]) -> None:
    assert wire.ids_array(wire.ids_bytes(np.array(ids, dtype=np.int64))).tolist() == ids


def test_ids_are_little_endian_int32_and_whole() -> None:
    assert wire.ids_bytes(np.array([1, 256])) == b"\x01\0\0\0\0\x01\0\0"
    with pytest.raises(msgspec.ValidationError, match="multiple of 4"):
        wire.ids_array(b"\0\0\0")
