# SPDX-License-Identifier: MIT
"""Reading an answer's ids: stop ids are no text, stop strings end it, one call may be all."""

from __future__ import annotations

import pytest

from tokenspeed.text.events import CallEnd, Content, Reasoning, merged
from tokenspeed.text.output import OutputOptions, OutputReader, content_of
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools.families import HERMES

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def tokenizer(model_directory) -> Tokenizer:
    return Tokenizer.load(model_directory)


def read(tokenizer: Tokenizer, text: str, finish: str = "stop", **options: object):
    reader = OutputReader(tokenizer, OutputOptions(**options))  # type: ignore[arg-type]
    ids = tokenizer.encode(text + ("<|im_end|>" if finish == "stop" else ""), add_special_tokens=False)
    events = []
    for index, token_id in enumerate(ids):
        events += reader.feed([token_id], finish if index == len(ids) - 1 else None)  # type: ignore[arg-type]
        if reader.finish:
            break
    return merged(events), reader


def test_stop_id_is_dropped_or_kept(tokenizer):
    assert read(tokenizer, "the cat")[0] == [Content("the cat")]
    shown, _ = read(tokenizer, "the cat", include_stop=True, skip_special_tokens=False)
    assert shown == [Content("the cat<|im_end|>")]


def test_stop_string_ends_the_answer_before_the_engine_does(tokenizer):
    events, reader = read(tokenizer, "the cat sat", stops=("at s",))
    assert (content_of(events), reader.finish, reader.stop_string) == ("the c", "stop", "at s")
    assert reader.feed([1, 2]) == []


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(tokenizer):
    assert read(tokenizer, "the cat sat", "length", stops=("t!",))[0] == [Content("the cat sat")]


def test_cut_character_comes_out_as_replacement(tokenizer):
    reader = OutputReader(tokenizer, OutputOptions())
    ids = tokenizer.encode("é", add_special_tokens=False)
    first = [i for i in range(256) if tokenizer.token_bytes(i) == "é".encode()[:1]]
    assert content_of(reader.feed(first, "length")) == "\ufffd" or len(ids) == 1


@pytest.mark.parametrize(("finish", "expected"), [("stop", "tool_calls"), ("length", "length")])
def test_finish_reason_of_calls(tokenizer, finish, expected):
    assert read(tokenizer, CALL, finish, dialect=HERMES, calls=True)[1].finish == expected


def test_one_call_ends_the_answer(tokenizer):
    events, reader = read(tokenizer, CALL + CALL, dialect=HERMES, calls=True, one_call=True)
    assert reader.finish == "tool_calls"
    assert [event for event in events if isinstance(event, CallEnd)] == [CallEnd(0, "complete")]


def test_markers_reach_the_parser_even_where_they_are_special(model_directory):
    tokenizer = Tokenizer.load(model_directory)
    tokenizer.special_ids |= {tokenizer.token_id("<think>"), tokenizer.token_id("</think>")}
    assert read(tokenizer, "<think>the</think>cat", dialect=HERMES)[0] == [Reasoning("the"), Content("cat")]
