# SPDX-License-Identifier: MIT
"""The client: bytes keep their arrival, events are cut anywhere, whatever breaks is said and never raised."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tokenspeed.base.clock import FakeClock, MonotonicClock
from tokenspeed.base.errors import SetupError
from tokenspeed.bench.client import Connection, Origin, Reply, events
from tokenspeed.bench.dialect import read_answer
from tokenspeed.bench.validity import Ledger

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_event_is_stamped_when_its_last_byte_arrives():
    pieces = [
        (1, b"data: a\n\nda"),
        (2, b"ta: b\r\n"),
        (3, b"\r\n: a comment\n\ndata:c\ndata: d\n\n"),
        (4, b"data: e"),
    ]
    assert list(events(pieces)) == [(1, b"a"), (3, b"b"), (3, b"c\nd")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_events_do_not_depend_on_how_bytes_were_cut(size: int):
    stream = b'data: {"a": 1}\r\n\r\nid: 7\ndata: x\n\n\n\ndata: [DONE]\n\n'
    pieces = [(0, stream[begin : begin + size]) for begin in range(0, len(stream), size)]
    assert [data for _, data in events(pieces)] == [b'{"a": 1}', b"x", b"[DONE]"]


def test_url_may_name_the_api_or_not():
    assert Origin.parse("127.0.0.1:80") == Origin("127.0.0.1", 80, False, "")
    assert Origin.parse("https://host/engine/v1/") == Origin("host", 443, True, "/engine")
    with pytest.raises(SetupError, match="expected http"):
        Origin.parse("ftp://host")


async def exchanges(serve: Serve, count: int = 1, timeout_s: float = 5.0) -> list[Reply]:
    """Replies to `count` requests over one connection."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = Connection(Origin("127.0.0.1", port, False, ""), MonotonicClock(), timeout_s=timeout_s)
    replies = [await connection.exchange("POST", "/x", b"{}") for _ in range(count)]
    connection.close()
    server.close()
    return replies


async def read_request(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(2)


def test_connection_is_kept_between_exchanges():
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        for _ in range(3):
            await read_request(reader)
            writer.write(OK)
        writer.close()

    replies = asyncio.run(exchanges(serve, 3))
    assert [(reply.status, reply.body, reply.error) for reply in replies] == [(200, b"ok", None)] * 3
    assert len(connections) == 1


def test_connection_that_idled_out_is_opened_anew():
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        writer.close()

    replies = asyncio.run(exchanges(serve, 3))
    assert [reply.error for reply in replies] == [None] * 3
    assert len(connections) == 3


def test_answer_that_breaks_off_is_not_sent_twice():
    requests: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        requests.append(1)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    (reply,) = asyncio.run(exchanges(serve))
    assert (reply.status, reply.body, reply.error) == (200, b"half", "the server closed the connection")
    assert requests == [1]


def test_server_that_never_answers_runs_into_the_limit():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    (reply,) = asyncio.run(exchanges(serve, timeout_s=0.05))
    assert (reply.status, reply.error) == (0, "no whole answer within 0.05 s")


def test_what_is_not_http_is_said():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"220 mail.example ready\r\n\r\n")
        await writer.drain()
        writer.close()

    (reply,) = asyncio.run(exchanges(serve))
    assert reply.error is not None
    assert reply.error.startswith("not HTTP")


def test_bytes_carry_the_time_of_the_clock():
    clock = FakeClock(100)
    connection = Connection(Origin("h", 1, False, ""), clock)
    connection._parser = __import__("httptools").HttpResponseParser(connection)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    clock.advance_us(23)
    connection.data_received(b"cd")
    assert connection._reply.pieces == [(100, b"ab"), (123, b"cd")]


def stream(*documents: str) -> Reply:
    pieces = [(index, f"data: {document}\n\n".encode()) for index, document in enumerate(documents)]
    return Reply(status=200, pieces=pieces)


USAGE = '{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}'


def test_empty_opening_is_no_token_and_times_are_those_of_tokens():
    answer = read_answer(
        stream(
            '{"choices": [{"text": "", "finish_reason": null}]}',
            '{"choices": [{"text": "a", "token_ids": [1]}]}',
            '{"choices": [{"text": "", "token_ids": [2, 3]}]}',
            '{"choices": [{"text": "", "finish_reason": "length"}]}',
            USAGE,
            "[DONE]",
        )
    )
    assert (answer.error, answer.times_us, answer.event_tokens, answer.ids) == (
        None,
        [1, 2],
        [1, 2],
        [1, 2, 3],
    )
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (5, 3, None)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (('{"choices": [{"text": "a"}]}', USAGE), "finish_reason None"),
        (('{"choices": [{"text": "a", "finish_reason": "length"}]}',), "without usage"),
        (('{"choices": [{"text": "a", "finish_reason": "abort"}]}', USAGE), "finish_reason 'abort'"),
        (('{"error": {"message": "the engine died"}}',), "in the stream: the engine died"),
        (("{",), "not a stream of completions"),
        (
            ('{"choices": [{"token_ids": [1], "finish_reason": "stop"}]}', USAGE),
            "1 token ids came, usage counts 3",
        ),
    ],
)
def test_answer_that_is_not_whole_says_why(documents: tuple[str, ...], said: str):
    assert said in (read_answer(stream(*documents)).error or "")


def test_reasoning_counts_as_tokens():
    answer = read_answer(
        stream(
            '{"choices": [{"delta": {"role": "assistant"}}]}',
            '{"choices": [{"delta": {"reasoning_content": "hm"}}]}',
            '{"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}',
            USAGE,
        )
    )
    assert (answer.times_us, answer.text) == ([1, 2], "a")


def test_ledger_finds_the_longest_prefix_in_whole_blocks():
    import numpy as np

    tokens = np.arange(100, dtype=np.int32)
    ledger = Ledger(16)
    assert ledger.implied(tokens) == (0, 0)
    ledger.begin(tokens[:40])
    assert ledger.implied(tokens) == (0, 47)
    ledger.finish(tokens[:70])
    assert ledger.implied(tokens) == (64, 79)
    assert ledger.implied(tokens[:64]) == (63, 63)  # the last token is always computed
    assert ledger.implied(tokens[::-1].copy()) == (0, 0)
