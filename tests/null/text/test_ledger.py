# SPDX-License-Identifier: MIT
"""The turn ledger: whatever a client sends, a turn's ids are those of rendering and encoding everything."""

from __future__ import annotations

import gzip
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tokenspeed.text.chat_template import ChatTemplate
from tokenspeed.text.ledger import Asked, Effort, Ledger, Turn, Writer
from tokenspeed.text.plane import TextPlane

SESSIONS = Path(__file__).parents[4] / "shared" / "data" / "traces" / "dev" / "agent_sessions.jsonl.gz"
TOOLS = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}]
TURNS_MAX = 6000  # of a random test: minutes, not a quarter of an hour
WORDS = [
    "the cat", " sat", "\n", "\n\n", "  ", "x = 1", "你好", "e\u0301", "\u0301", "🙂", "<|im_", "end|>", "<|im_end|>",
    "<|im_start|>user\n", "<think>", "</think>", "<tool_call>", "'", '"\\', "\t", "0123", "<tool_response>", "",
]  # fmt: skip


class Server:
    """Reads turns as a server does, and checks each against the slow true path."""

    def __init__(self, plane: TextPlane, **limits: int) -> None:
        self.plane = plane
        self.ledger = Ledger(**limits)
        self.writer = Writer(plane)
        self.efforts: list[Effort] = []

    def turn(self, messages: list[dict[str, Any]], tools: Any = None, **named: Any) -> Turn:
        data = json.dumps(messages, ensure_ascii=False).encode()
        variables = named.pop("variables", {})
        asked = Asked(
            b"  " + data, 2, len(data) + 1, json.dumps(tools).encode() if tools else b"",
            variables=msgspec.json.encode(variables), **named,
        )  # fmt: skip
        found = self.ledger.find(asked)
        turn = None
        if found is not None and found.mark is not None:
            rest = data[found.mark.span_end : -1].lstrip(b", ")
            turn = self.writer.append(found, asked, msgspec.json.decode(b"[" + rest + b"]"))
        if turn is None:
            turn = self.writer.render(found, asked, messages, tools, variables)
        self.ledger.keep(turn.record, turn.replaced)
        self.efforts.append(turn.effort)
        whole = self.plane.prompt_of_chat(messages, tools=tools, variables=variables)
        assert turn.prompt_ids.tolist() == whole.ids
        assert turn.opens_reasoning == whole.in_reasoning
        return turn

    def answer(self, turn: Turn, ids: list[int]) -> None:
        record = self.writer.with_answer(turn.record, ids)
        if record is not None:
            self.ledger.keep(record, turn.record)


def words(dice: random.Random) -> str:
    return "".join(dice.choices(WORDS, k=dice.randrange(1, 8)))


def addition(dice: random.Random, number: int, wild: bool) -> list[dict[str, Any]]:
    """An answer and what came back: a user's word, or results of calls."""
    say = (lambda: words(dice)) if wild else (lambda: f"{dice.choice(WORDS[:10])} {number}")
    answer: dict[str, Any] = {"role": "assistant", "content": say()}
    if dice.random() < 0.3:
        answer["reasoning_content"] = say()
    if dice.random() < 0.3:
        return [answer, {"role": "user", "content": say()}]
    calls = [
        {
            "id": f"call_{number}_{index}",
            "type": "function",
            "function": {"name": "read", "arguments": {"of": say()}},
        }
        for index in range(dice.randrange(1, 3))
    ]
    answer["tool_calls"] = calls
    results = [{"role": "tool", "content": say(), "tool_call_id": call["id"]} for call in calls]
    return [answer, *results]


def answer_ids(dice: random.Random, plane: TextPlane, text: str) -> list[int]:
    """Ids that spell `text`, not always those the tokenizer would choose."""
    cuts = sorted(dice.choices(range(len(text) + 1), k=dice.choice([0, 0, 3])))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [i for part in parts for i in plane.tokenizer.encode(part, add_special_tokens=False)]


@pytest.mark.parametrize("wild", [False, True])
def test_every_turn_equals_a_full_encode(plane, rounds, wild):
    """Sessions that grow, are retried, rewound and edited, with answers as the engine said them."""
    dice = random.Random(11)
    server = Server(plane, bytes_max=1 << 20)
    messages: list[dict[str, Any]] = []
    tools: Any = None
    for number in range(min(rounds // 4, TURNS_MAX)):
        if not messages or dice.random() < 0.04:
            tools = TOOLS if dice.random() < 0.5 else None
            system = [{"role": "system", "content": "Be brief. " * 30}] if dice.random() < 0.7 else []
            messages = [*system, {"role": "user", "content": words(dice) + "!" * 300}]
        turn = server.turn(messages, tools, session=dice.choice([None, "s"]))
        if dice.random() < 0.05:
            continue  # the same again
        if dice.random() < 0.05 and len(messages) > 4:  # rewound, at any message
            keep = dice.randrange(2, len(messages))
            messages = [*messages[:keep], {"role": "user", "content": words(dice)}]
            continue
        if dice.random() < 0.03:  # edited in the past
            at = dice.randrange(len(messages))
            messages = [*messages[:at], messages[at] | {"content": words(dice)}, *messages[at + 1 :]]
        new = addition(dice, number, wild)
        before = plane.text_of_chat(messages, tools=tools)
        after = plane.text_of_chat([*messages, *new], tools=tools)
        if after.startswith(before) and dice.random() < 0.7:
            said = after[len(before) :].split("<|im_end|>")[0] + "<|im_end|>"
            server.answer(turn, answer_ids(dice, plane, said))
        messages = [*messages, *new]
        if len(messages) > 40:
            messages = []
    assert set(server.efforts) == set(Effort)
    if not wild:
        assert server.efforts.count(Effort.APPENDED) > len(server.efforts) // 3
    assert server.ledger.bytes_held <= 1 << 20


def recorded() -> Iterator[dict[str, Any]]:
    if not SESSIONS.is_file():
        pytest.skip("the recorded sessions are not at hand")
    with gzip.open(SESSIONS) as lines:
        for line in lines:
            yield msgspec.json.decode(line)


@pytest.mark.parametrize("sessions", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_recorded_sessions_equal_a_full_encode(plane, sessions):
    """Every turn of real sessions; checked against the slow path on all turns of the short, some of the long."""
    chosen = [session for session in recorded() if session["tokens"] < 20_000 * (1 + sessions // 20)][
        :sessions
    ]
    for session in chosen:
        server = Server(plane)
        for turn in session["turns"]:
            messages = [
                {key: value for key, value in message.items() if value is not None or key == "content"}
                for message in session["messages"][: turn["i"]]
            ]
            server.turn(messages, session=session["id"])
        assert server.efforts.count(Effort.APPENDED) >= len(server.efforts) * 3 // 4


LONG = {"role": "user", "content": "look at this: " + "word " * 200}
MORE = [{"role": "assistant", "content": "I did."}, {"role": "user", "content": "Good."}]


def test_later_turns_reuse_and_say_how_much(bundled_plane):
    server = Server(bundled_plane)
    first = server.turn([LONG])
    server.answer(first, bundled_plane.tokenizer.encode("I did.<|im_end|>", add_special_tokens=False))
    second = server.turn([LONG, *MORE])
    assert (first.effort, second.effort) == (Effort.WHOLE, Effort.APPENDED)
    assert second.ids_reused > len(first.prompt_ids)  # the answer's ids were there
    assert len(server.ledger) == 1


def test_salts_and_tools_and_variables_never_mix(bundled_plane):
    server = Server(bundled_plane)
    server.turn([LONG], salt=b"a", session="s")
    assert server.turn([LONG, *MORE], salt=b"b", session="s").effort is Effort.WHOLE
    assert server.turn([LONG, *MORE], salt=b"a", tools=TOOLS).effort is not Effort.APPENDED
    assert server.turn([LONG, *MORE], salt=b"a", variables={"x": 1}).effort is not Effort.APPENDED
    assert server.turn([LONG, *MORE], salt=b"a").effort is Effort.APPENDED


def test_a_session_name_is_no_proof(bundled_plane):
    server = Server(bundled_plane)
    server.turn([LONG], session="mine")
    other = {"role": "user", "content": "something else " * 30}
    assert server.turn([other], session="mine").effort is not Effort.APPENDED
    assert server.turn([LONG, *MORE], session="yours").effort is Effort.APPENDED


def test_sessions_without_a_name_are_told_apart(bundled_plane):
    """Many that begin alike: each turn finds its own."""
    server = Server(bundled_plane)
    system = {"role": "system", "content": "Be brief. " * 400}
    histories = [[system, {"role": "user", "content": f"task {index}"}] for index in range(40)]
    for history in histories:
        server.turn(history)
    for _ in range(3):
        for history in histories:
            history += [{"role": "assistant", "content": f"did {history[1]['content']}"}, MORE[1]]
            assert server.turn(history).effort is Effort.APPENDED


def test_a_session_gone_back_to_an_earlier_prompt(bundled_plane):
    server = Server(bundled_plane)
    for messages in ([LONG], [LONG, *MORE], [LONG, *MORE, *MORE], [LONG], [LONG, *MORE], [LONG]):
        server.turn(messages, session="s")
    assert server.efforts == [Effort.WHOLE] + [Effort.APPENDED] * 5


def test_words_a_template_looks_for_end_appending(qwen_plane):
    server = Server(qwen_plane)
    server.turn([LONG])
    think = [{"role": "assistant", "content": "a</think>b"}, {"role": "user", "content": "?"}]
    assert server.turn([LONG, *think]).effort is Effort.COMPARED
    assert server.turn([LONG, *think, *MORE]).effort is Effort.COMPARED


def test_the_lint_says_where_a_template_does_not_append(bundled_plane, qwen_plane, caplog):
    logging.getLogger("tokenspeed").addHandler(caplog.handler)
    with caplog.at_level("INFO", "tokenspeed"):
        for plane in (bundled_plane, qwen_plane, replace(bundled_plane, template=None)):
            Writer(plane).lint()
    logging.getLogger("tokenspeed").removeHandler(caplog.handler)
    appends, rewrites = dict.fromkeys(record.getMessage() for record in caplog.records)
    assert "only appends" in appends
    assert "with tools with reasoning when the user speaks" in rewrites


def test_a_new_day_is_a_new_prompt(bundled_plane):
    days = [datetime(2026, 1, 2), datetime(2026, 1, 2), datetime(2026, 1, 3)]
    today = [days[0]]
    source = (
        "{{ strftime_now('%d') }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    template = ChatTemplate({"default": source}, {}, now=lambda: today[0])
    server = Server(replace(bundled_plane, template=template))
    history = [LONG]
    for day in days:
        today[0] = day
        server.turn(history)
        history = [*history, *MORE]
    assert server.efforts == [Effort.WHOLE, Effort.APPENDED, Effort.WHOLE]


def test_memory_is_bounded_and_the_oldest_goes_first(bundled_plane):
    server = Server(bundled_plane, bytes_max=60_000)
    for index in range(30):
        server.turn([{"role": "user", "content": f"{index} " * 300}])
        assert server.ledger.bytes_held <= 60_000
    assert 0 < len(server.ledger) < 30
    assert server.turn([{"role": "user", "content": "29 " * 300}, *MORE]).effort is Effort.APPENDED
    assert server.turn([{"role": "user", "content": "0 " * 300}, *MORE]).effort is not Effort.APPENDED
    server.turn([{"role": "user", "content": "too much " * 20_000}])
    for record in list(server.ledger._records):
        assert server.ledger.drop(record)
        assert not server.ledger.drop(record)
    assert server.ledger.bytes_held == 0
    assert not server.ledger._by_sample
    assert not server.ledger._by_session


def test_all_that_grew_from_a_rendering_can_be_dropped(bundled_plane):
    server = Server(bundled_plane)
    first = server.turn([LONG])
    server.turn([LONG, *MORE])
    server.turn([LONG, *MORE, *MORE])
    server.turn([{"role": "user", "content": "another " * 99}])
    server.ledger.drop_lineage(first.record.lineage)
    assert len(server.ledger) == 1


def test_an_answer_cut_inside_a_character_is_left_out(bundled_plane):
    server = Server(bundled_plane)
    turn = server.turn([LONG])
    half = next(i for i, piece in enumerate(bundled_plane.tokenizer.byte_table) if piece == b"\xe4")
    assert server.writer.with_answer(turn.record, [half]) is None
