# SPDX-License-Identifier: MIT
"""A model directory's text side as one value."""

from __future__ import annotations

import json

import pytest

from tokenspeed.base.errors import RequestError, SetupError
from tokenspeed.engine.source import BUNDLED
from tokenspeed.text.events import ArgumentsDelta, Reasoning, merged
from tokenspeed.text.output import OutputOptions, OutputReader, content_of
from tokenspeed.text.plane import TextPlane
from tokenspeed.text.tools.spec import PLAIN

TOOL = {"type": "function", "function": {"name": "write", "parameters": {"type": "object"}}}
USER = [{"role": "user", "content": "the cat"}]


def test_plane_reads_a_directory(model_directory):
    plane = TextPlane.load(model_directory)
    assert plane.defaults.temperature == 0.6
    assert plane.defaults.top_p is None
    assert plane.stop_ids == (7, 8, plane.tokenizer.token_id("<|im_end|>"))
    assert plane.dialect == PLAIN
    prompt = plane.prompt_of_chat(USER)
    assert (
        plane.tokenizer.decode(prompt.ids) == "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not prompt.in_reasoning


@pytest.mark.parametrize("reasoning", ["", "which one?\n\nthat"])
@pytest.mark.parametrize("content", ["", "Reading <a> & {b}.", "two\nlines"])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_reading_the_bundled_template_inverts_it(reasoning, content, calls):
    plane = TextPlane.load(BUNDLED)
    call = {"function": {"name": "write", "arguments": {"text": '</tool_call>\n"}', "n": [1, {"é": None}]}}}
    answer = {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [call] * calls,
    }
    before = plane.prompt_of_chat(USER, tools=[TOOL]).ids
    whole = plane.prompt_of_chat([*USER, answer], tools=[TOOL], ending="none").ids
    assert whole[: len(before)] == before
    reader = OutputReader(plane.tokenizer, OutputOptions(dialect=plane.dialect, calls=True))
    ids = whole[len(before) : whole.index(plane.stop_ids[0], len(before)) + 1]
    events = merged(reader.feed(ids, "stop"))
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == reasoning
    assert content_of(events) == content
    written = [e.text for e in events if isinstance(e, ArgumentsDelta)]
    assert [json.loads(text) for text in written] == [call["function"]["arguments"]] * calls
    assert reader.finish == ("tool_calls" if calls else "stop")


def test_prompt_that_opens_reasoning_is_noticed(model_directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((model_directory / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<think>\n{# </think> #}")
    assert TextPlane.load(tmp_path).prompt_of_chat(USER).in_reasoning


def test_what_the_model_cannot_express_is_refused(model_directory, tmp_path):
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(RequestError, match="no place for tools") as raised:
        TextPlane.load(model_directory).prompt_of_chat(USER, tools=[tool])
    assert raised.value.param == "tools"
    (tmp_path / "tokenizer.json").write_bytes((model_directory / "tokenizer.json").read_bytes())
    with pytest.raises(RequestError, match="/v1/completions"):
        TextPlane.load(tmp_path).prompt_of_chat(USER)


def test_broken_files_are_refused_with_their_names(model_directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((model_directory / "tokenizer.json").read_bytes())
    for text in ("[]", "{", json.dumps({"temperature": "hot"}), json.dumps({"temperature": -3})):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(SetupError, match=r"generation_config\.json"):
            TextPlane.load(tmp_path)


def test_top_k_that_is_off_is_spelled_either_way(model_directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((model_directory / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text('{"top_k": -1}')
    assert TextPlane.load(tmp_path).defaults.top_k == 0


def test_stop_ids_that_the_model_cannot_say_are_left_out(model_directory):
    plane = TextPlane.load(model_directory)
    assert plane.within(8).stop_ids == (7,)
    assert plane.within(1 << 20) is plane
