# SPDX-License-Identifier: MIT
"""A scripted OpenAI server on loopback, whose prefix cache can be honest, leaky or made up.

It answers completions with ids at once, or waits on nothing: no device, no clock. What it claims of its cache
is decided by `Faults`, so that tests can hold the benchmark's checks against servers that cheat.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

VOCAB = 1000
BLOCK_TOKENS = 16


@dataclass
class Faults:
    """How a server departs from an honest one."""

    forced: bool = True
    ids: bool = True
    cached_reported: bool = True
    cached_always: float | None = None
    forgets: bool = False
    refuse_after: int | None = None
    short_answers: bool = False
    wrong_forced: bool = False
    cut_after: int | None = None


@dataclass
class Scripted:
    """The server's state: prompts seen, blocks cached, bodies received."""

    faults: Faults = field(default_factory=Faults)
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[str | None] = field(default_factory=list)
    cached: set[tuple[int, ...]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                length, session = 0, None
                while (header := await reader.readline()) != b"\r\n":
                    name, _, value = header.decode().partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                    elif name.lower() == "x-session-id":
                        session = value.strip()
                body = await reader.readexactly(length)
                if path == "/metrics":
                    await self.whole(
                        writer, 200, {}, b'# HELP x y\nvllm:kv_cache_usage_perc{model="m"} 0.25\n'
                    )
                elif method == "GET":
                    card = {"id": "scripted", "object": "model", "vocab_size": VOCAB}
                    await self.whole(writer, 200, {"object": "list", "data": [card]})
                else:
                    self.sessions.append(session)
                    await self.answer(writer, path, json.loads(body))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def whole(
        self, writer: asyncio.StreamWriter, status: int, document: dict[str, Any], text: bytes | None = None
    ) -> None:
        body = text or json.dumps(document).encode()
        head = f"HTTP/1.1 {status} Reason\r\nServer: scripted\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async def answer(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        self.bodies.append(body)
        faults = self.faults
        if faults.refuse_after is not None and len(self.bodies) > faults.refuse_after:
            await self.whole(writer, 429, {"error": {"message": "the queue is full"}})
            return
        if "forced_token_ids" in body and not faults.forced:
            await self.whole(writer, 400, {"error": {"message": "forced_token_ids: not enabled"}})
            return
        chat = "chat" in path
        prompt = [len(word) for m in body.get("messages", ()) for word in m["content"].split()]
        prompt = prompt if chat else body["prompt"]
        ids = body.get("forced_token_ids") or [
            500 + (len(prompt) + i) % 400 for i in range(body["max_tokens"])
        ]
        if faults.wrong_forced and "forced_token_ids" in body and len(ids) != 4:
            ids = [ids[0] ^ 1, *ids[1:]]
        if faults.short_answers:
            ids = ids[:-1]
        hit = 0 if chat else self.hit(prompt)
        if not chat and not faults.forgets:
            self.remember(prompt + ids)
        usage: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        if faults.cached_reported:
            if faults.cached_always is not None:
                hit = int(len(prompt) * faults.cached_always)
            usage["prompt_tokens_details"] = {"cached_tokens": hit}
        await self.stream(writer, ids, usage, chat)

    def hit(self, prompt: list[int]) -> int:
        hit = 0
        while hit + BLOCK_TOKENS < len(prompt) and tuple(prompt[: hit + BLOCK_TOKENS]) in self.cached:
            hit += BLOCK_TOKENS
        return hit

    def remember(self, tokens: list[int]) -> None:
        self.cached |= {tuple(tokens[:end]) for end in range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS)}

    async def stream(
        self, writer: asyncio.StreamWriter, ids: list[int], usage: dict[str, Any], chat: bool
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

        def event(document: dict[str, Any] | str) -> None:
            text = document if isinstance(document, str) else json.dumps(document)
            data = f"data: {text}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        event({"choices": [{"index": 0, "text": "", "finish_reason": None}]})
        for index, each in enumerate(ids):
            if self.faults.cut_after == index:
                writer.transport.abort()
                return
            choice: dict[str, Any] = {
                "index": 0,
                "finish_reason": "length" if index == len(ids) - 1 else None,
            }
            choice |= {"delta": {"content": f"w{each} "}} if chat else {"text": f"w{each} "}
            if self.faults.ids and not chat:
                choice["token_ids"] = [each]
            event({"choices": [choice]})
            await writer.drain()
            await asyncio.sleep(0)
        event({"choices": [], "usage": usage})
        event("[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@contextmanager
def scripted(faults: Faults | None = None) -> Iterator[Scripted]:
    """A scripted server in a thread of its own."""
    server = Scripted(faults or Faults())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncio.Server:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        return listening

    listening = asyncio.run_coroutine_threadsafe(start(), loop).result()

    async def stop() -> None:
        listening.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
