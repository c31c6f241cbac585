# SPDX-License-Identifier: MIT
"""The APIs the benchmark speaks: completions with token ids, chat, and llama.cpp's own. Bodies out, answers in.

A `Tape` holds one conversation's history both as ids and as JSON, and only ever grows: a turn encodes its own
tokens, not the 100,000 before them, so that the client stays quiet while other streams are timed. `read_answer`
takes a `Reply` apart after it has ended. Beyond the OpenAI fields it asks for `ignore_eos`, `min_tokens` and
`return_token_ids` (`plain` leaves these out) and for replay `forced_token_ids`. llama.cpp streams ids on its
own route only, whose events are read as the OpenAI events that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from tokenspeed.bench.client import Reply, events
from tokenspeed.bench.conversation import Conversation, Ids, Turn, words

FINISHED: Final = frozenset({"stop", "length", "tool_calls"})
MESSAGE_CHARS_MAX: Final = 160


@dataclass(frozen=True, slots=True)
class Ask:
    """What every request of a run has in common."""

    model: str
    temperature: float = 0.0
    plain: bool = False
    forced: bool = False


@dataclass(slots=True)
class Answer:
    """A streamed answer. `times_us[i]` is the arrival of event i, `event_tokens[i]` its tokens (None: no ids)."""

    times_us: list[int] = field(default_factory=list[int])
    event_tokens: list[int] | None = None
    ids: list[int] | None = None
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    error: str | None = None


class Tape(Protocol):
    """One conversation's history on its way to the server."""

    path: str

    def turn(self, turn: Turn) -> None:
        """Append the new part of a prompt."""
        ...

    def body(self, ask: Ask, turn: Turn) -> bytes:
        """The request for an answer to all that was appended."""
        ...

    def read(self, reply: Reply) -> Answer:
        """The answer in a reply."""
        ...

    def answer(self, ids: Ids, text: str) -> None:
        """Append an answer."""
        ...

    @property
    def ids(self) -> Ids | None:
        """All tokens so far, a view that later appends leave alone; None where only the server knows them."""
        ...


class CompletionsTape:
    """Prompts of token ids."""

    path = "/v1/completions"

    def __init__(self, conversation: Conversation) -> None:
        tokens_max = sum(len(turn.ids) + turn.answer_tokens for turn in conversation.turns)
        self._ids = np.empty(tokens_max, np.int32)
        self._length = 0
        self._json = bytearray(b"[")

    def turn(self, turn: Turn) -> None:
        self._append(turn.ids)

    def answer(self, ids: Ids, text: str) -> None:
        self._append(ids)

    def body(self, ask: Ask, turn: Turn) -> bytes:
        fields = _fields(ask, turn) | {"prompt": msgspec.Raw(bytes(self._json) + b"]")}
        if ask.forced and turn.answer is not None:
            fields["forced_token_ids"] = turn.answer.tolist()
        return msgspec.json.encode(fields)

    def read(self, reply: Reply) -> Answer:
        return read_answer(reply)

    @property
    def ids(self) -> Ids:
        return self._ids[: self._length]

    def _append(self, ids: Ids) -> None:
        if not len(ids):
            return
        self._ids[self._length : self._length + len(ids)] = ids
        if self._length:
            self._json += b","
        self._json += msgspec.json.encode(ids.tolist())[1:-1]
        self._length += len(ids)


class LlamaCppTape(CompletionsTape):
    """Prompts of token ids on llama.cpp's own route: the one on which it streams ids, and says what it reused."""

    path = "/completion"

    def body(self, ask: Ask, turn: Turn) -> bytes:
        # Without `response_fields` the last event repeats the whole prompt as text: work nobody reads.
        return msgspec.json.encode(
            {
                "prompt": msgspec.Raw(bytes(self._json) + b"]"),
                "n_predict": turn.answer_tokens,
                "temperature": ask.temperature,
                "stream": True,
                "ignore_eos": True,
                "cache_prompt": True,
                "response_fields": list(_LLAMA_CPP_LAST),
            }
        )

    def read(self, reply: Reply) -> Answer:
        answer = read_answer(reply, _from_llama_cpp)
        if answer.ids is not None and len(answer.ids) != answer.output_tokens:
            # It streams nothing while a character is incomplete, and those ids never come.
            answer.ids = answer.event_tokens = None
        return answer


class ChatTape:
    """Messages: recorded texts, or words that stand for ids."""

    path = "/v1/chat/completions"

    def __init__(self, conversation: Conversation) -> None:
        self._json = bytearray(b"[")

    def turn(self, turn: Turn) -> None:
        for text in turn.texts or (words(turn.ids),):
            self._append("user", text)

    def answer(self, ids: Ids, text: str) -> None:
        self._append("assistant", text)

    def body(self, ask: Ask, turn: Turn) -> bytes:
        return msgspec.json.encode(_fields(ask, turn) | {"messages": msgspec.Raw(bytes(self._json) + b"]")})

    def read(self, reply: Reply) -> Answer:
        return read_answer(reply)

    @property
    def ids(self) -> None:
        return None

    def _append(self, role: str, content: str) -> None:
        if len(self._json) > 1:
            self._json += b","
        self._json += msgspec.json.encode({"role": role, "content": content})


TAPES: Final[dict[str, type[CompletionsTape] | type[ChatTape]]] = {
    "completions": CompletionsTape,
    "chat": ChatTape,
    "llama.cpp": LlamaCppTape,
}
_LLAMA_CPP_LAST: Final = ("stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings")
"""What its last event is asked to hold."""
_LLAMA_CPP_STOPS: Final = {"eos": "stop", "word": "stop", "limit": "length"}


def _fields(ask: Ask, turn: Turn) -> dict[str, Any]:
    extensions: dict[str, Any] = {} if ask.plain else {"ignore_eos": True, "return_token_ids": True}
    if not (ask.plain or ask.forced):
        extensions["min_tokens"] = turn.answer_tokens
    return {
        "model": ask.model,
        "max_tokens": turn.answer_tokens,
        "temperature": ask.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extensions,
    }


def _from_llama_cpp(event: dict[str, Any]) -> dict[str, Any]:
    """The OpenAI event that one of llama.cpp's stands for; an error is the same in both."""
    if "error" in event:
        return event
    if not event.get("stop"):
        return {"choices": [{"text": event.get("content"), "token_ids": event.get("tokens")}]}
    usage = {
        "prompt_tokens": event["tokens_evaluated"],
        "completion_tokens": event["tokens_predicted"],
        "prompt_tokens_details": {"cached_tokens": event["timings"]["cache_n"]},
    }
    return {"choices": [{"finish_reason": _LLAMA_CPP_STOPS.get(event["stop_type"])}], "usage": usage}


def read_answer(reply: Reply, spelled: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Answer:
    """Take a reply apart; whatever is wrong with it is the answer's `error`.

    `spelled` makes OpenAI events of a dialect whose streams may leave ids out; the caller looks to that.
    """
    answer = Answer()
    if reply.status != 200:
        answer.error = (
            f"HTTP {reply.status}: {refusal(reply)}" if reply.status else reply.error or "no answer"
        )
        return answer
    pieces: list[tuple[int, list[int]]] = []
    finish: str | None = None
    usage: dict[str, Any] | None = None
    try:
        for at_us, data in events(reply.pieces):
            if data == b"[DONE]":
                break
            document = msgspec.json.decode(data)
            if spelled is not None:
                document = spelled(document)
            if document.get("error"):
                answer.error = f"in the stream: {_message(document)}"
            usage = document.get("usage") or usage
            for choice in document.get("choices") or ():
                text, ids = _said(choice)
                finish = choice.get("finish_reason") or finish
                answer.text += text
                if text or ids or choice.get("finish_reason"):
                    pieces.append((at_us, ids))
                elif _thought(choice):
                    pieces.append((at_us, []))
    except (msgspec.DecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        answer.error = f"not a stream of completions: {error!r}"
    if any(ids for _, ids in pieces):
        # With ids, an event without any (a finish, an end of withheld text) brings no token: it is no step.
        pieces = [piece for piece in pieces if piece[1]]
        answer.ids = [each for _, ids in pieces for each in ids]
        answer.event_tokens = [len(ids) for _, ids in pieces]
    answer.times_us = [at_us for at_us, _ in pieces]
    _count(answer, usage)
    unfinished = _unfinished(answer, finish, usage, ids_whole=spelled is None)
    answer.error = answer.error or reply.error or unfinished
    return answer


def _said(choice: dict[str, Any]) -> tuple[str, list[int]]:
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or "", list(choice.get("token_ids") or ())


def _thought(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls"))


def _count(answer: Answer, usage: dict[str, Any] | None) -> None:
    if usage is None:
        return
    answer.prompt_tokens = int(usage.get("prompt_tokens") or 0)
    answer.output_tokens = int(usage.get("completion_tokens") or 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    answer.cached_tokens = None if cached is None else int(cached)


def _unfinished(
    answer: Answer, finish: str | None, usage: dict[str, Any] | None, *, ids_whole: bool
) -> str | None:
    if finish not in FINISHED:
        return f"the stream ended with finish_reason {finish!r}"
    if usage is None:
        return "the stream ended without usage, which stream_options.include_usage asks for"
    if not answer.times_us:
        return "the stream held no token"
    if ids_whole and answer.ids is not None and len(answer.ids) != answer.output_tokens:
        return f"{len(answer.ids)} token ids came, usage counts {answer.output_tokens}"
    return None


def refusal(reply: Reply) -> str:
    """What a server said when it refused, in one line."""
    try:
        return _message(msgspec.json.decode(reply.body))
    except (msgspec.DecodeError, AttributeError, TypeError):
        return reply.body.decode("utf-8", "replace").strip()[:MESSAGE_CHARS_MAX] or "no reason given"


def _message(document: dict[str, Any]) -> str:
    error = document.get("error") or document
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:MESSAGE_CHARS_MAX]
