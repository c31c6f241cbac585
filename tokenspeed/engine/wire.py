# SPDX-License-Identifier: MIT
"""What the API process and the core say to each other: the only schema between them.

In: structs. Out: MessagePack bytes, and back. Fields are positional (`array_like`), the first element is
the message's tag. Token ids travel as raw little-endian int32 (`ids_bytes`, `ids_array`): 50k ids cost 0.1
ms instead of 1.6 ms as a list. One ZeroMQ frame is one message. Bytes that are no message raise
`msgspec.MsgspecError` from the decoders, nothing else; the receiver logs and drops them. No pickling, no
code, no paths.

Invariants: every `Generate` is answered by exactly one closing message, a `Delta` with `finish` set or a
`Refused`; `Ready` or `Failed` is the first message of a core.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec
import numpy as np

from tokenspeed.base.constraint import Constraint
from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.obs.sample import CoreSample, SessionAccount

Finish = Literal["stop", "length", "cancelled", "error"]
Refusal = Literal[
    "queue_full",
    "door_full",
    "deadline",
    "too_long",
    "exceeds_pool",
    "duplicate",
    "empty",
    "invalid",
    "grammar",
]
Idle = Literal["unknown", "tool", "turn"]
Identity = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
CacheMiss = Literal["new", "rewritten", "volatile_line", "evicted"]
RequestId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Message(msgspec.Struct, array_like=True, tag=str.lower):
    """Root of everything that is a whole frame."""


class Generate(Message):
    """Front -> core: start a request. `sampling` is complete: a seed is drawn, `tokens_max` is at least 1."""

    request_id: RequestId
    ids: bytes
    sampling: SamplingParams
    salt: bytes = b""
    """Prefixes are shared only among equal salts."""
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] = 0
    session: Identity = 0
    """Of its name and its salt; 0: the request is a session of its own."""
    arrival_us: int = 0
    """Host monotonic clock, one epoch for all processes."""
    constraint: Constraint | None = None
    """What the answer must look like."""
    root: Identity = 0
    """The session that its session is a part of; 0: none."""
    tenant: Identity = 0
    floor_mtps: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    """Thousandths of a token per second promised to it; 0: what the scheduler promises to all."""
    deadline_us: Annotated[int, msgspec.Meta(ge=0)] = 0
    """On the same clock: it is not begun later; 0: none."""
    final: bool = False
    """No further request of its session will come."""
    retain_us: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Wished stay of its KV after it ends."""


class Abort(Message):
    """Front -> core: nobody reads these any more."""

    request_ids: list[RequestId]


class Flush(Message):
    """Front -> core: forget every reusable prefix that nobody is using."""


class Rest(Message):
    """Front -> core: a turn of a session has ended; what it waits for now."""

    session: Identity
    idle: Idle
    gap_key: Identity = 0
    """Of the tool that was called; 0: none."""


class Close(Message):
    """Front -> core: no further request of a session will come."""

    session: Identity


class Ask(Message):
    """Front -> core: what has a session used? Answered by a `SessionReport` of the same ticket."""

    ticket: int
    session: Identity


class Stop(Message):
    """Front -> core: end the process after the current step."""


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one request."""

    request_id: int
    ids: bytes
    """New tokens; with finish "stop" the last one is the stop id."""
    logprobs: list[TokenLogprob] | None = None
    """One per new token, if asked for."""
    finish: Finish | None = None
    cached_tokens: int | None = None
    """Prompt tokens whose KV was reused; on a request's first delta."""
    error: str | None = None
    """With finish "error": what happened, in words that may be shown to the caller."""
    queue_us: int | None = None
    """From arrival to the first step that ran it; on a request's first delta."""
    retractions: int = 0
    """Times so far that it was sent back because blocks ran out, and resumed."""
    cache_miss: CacheMiss | None = None
    """Why no more than `cached_tokens` was reused, so from which token on; on a request's first delta."""


class Deltas(Message):
    """Core -> front: everything one step had to say."""

    items: list[Delta]
    step: int


class Refused(Message):
    """Core -> front: a `Generate` that was not accepted; closes its stream."""

    request_id: int
    reason: Refusal
    retry_after_us: int = 0
    """Where trying again may help: when."""


class SessionReport(Message):
    """Core -> front: what a session has used; `account` is None where it is not remembered."""

    ticket: int
    account: SessionAccount | None


class Ready(Message):
    """Core -> front: requests are welcome. What was chosen at start, and measured."""

    pid: int
    device: str
    """What the model runs on, in words."""
    vocab_size: int
    context_tokens_max: int
    """Longest prompt plus answer."""
    block_tokens: int
    blocks_total: int
    slots_max: int
    waiting_max: int
    overlap: bool
    choices: list[tuple[str, str, str]]
    """(what, value, why), in the order they were decided; for the startup banner."""


class Failed(Message):
    """Core -> front: the core could not start; the text of a `SetupError`."""

    message: str


class Stats(Message):
    """Core -> front: gauges now, counters since start; every quarter second, so also the heartbeat."""

    now_us: int
    core: CoreSample


Request = Generate | Abort | Flush | Rest | Close | Ask | Stop
"""What a core receives."""
Report = Deltas | Refused | Ready | Failed | Stats | SessionReport
"""What a front receives."""

_M = TypeVar("_M")
IDS_DTYPE: Final = np.dtype("<i4")
_encoder: Final = msgspec.msgpack.Encoder()
_request_decoder: Final = msgspec.msgpack.Decoder(Request)
_report_decoder: Final = msgspec.msgpack.Decoder(Report)


def encode(message: Message) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def decode_request(frame: bytes | memoryview) -> Request:
    """Read a frame sent to the core; `msgspec.MsgspecError` if it is not one."""
    return _decode(_request_decoder, frame)


def decode_report(frame: bytes | memoryview) -> Report:
    """Read a frame sent by the core; `msgspec.MsgspecError` if it is not one."""
    return _decode(_report_decoder, frame)


def ids_bytes(ids: np.ndarray) -> bytes:
    """Token ids [n] of any integer type as wire bytes; no copy where they are a view of such bytes."""
    if ids.dtype == IDS_DTYPE and isinstance(ids.base, bytes) and len(ids.base) == ids.nbytes:
        return ids.base
    return np.ascontiguousarray(ids, dtype=IDS_DTYPE).tobytes()


def ids_array(data: bytes) -> np.ndarray:
    """Wire bytes as int32 [n], a read-only view; `msgspec.ValidationError` if they are not whole ids."""
    if len(data) % IDS_DTYPE.itemsize:
        raise msgspec.ValidationError(f"{len(data)} bytes of ids are not a multiple of {IDS_DTYPE.itemsize}")
    return np.frombuffer(data, dtype=IDS_DTYPE)


def _decode(decoder: msgspec.msgpack.Decoder[_M], frame: bytes | memoryview) -> _M:
    try:
        return decoder.decode(frame)
    except (UnicodeDecodeError, RecursionError) as error:  # msgspec lets these two through
        raise msgspec.DecodeError(f"not a message: {error}") from error
