# SPDX-License-Identifier: MIT
"""llama.cpp's own route: bodies it reads, events as its server (0.5.0) sent them, and a real one where there is one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tokenspeed.bench import record
from tokenspeed.bench.agentic import main
from tokenspeed.bench.client import Reply
from tokenspeed.bench.conversation import Conversation, Turn
from tokenspeed.bench.dialect import Answer, Ask, LlamaCppTape
from tokenspeed.bench.record import Level, Result, Row
from tokenspeed.bench.scores import by_load

ROOT = Path(__file__).parents[3]
# A real server and a model for it, made with benchmarks/peers/llama_cpp_convert.py.
SERVER, MODEL = os.environ.get("LLAMA_SERVER"), os.environ.get("LLAMA_GGUF")

RECORDED = (
    '{"index":0,"content":"w532","tokens":[532],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":11}',
    '{"index":0,"content":"w12941","tokens":[12941],"stop":false,"id_slot":-1,"tokens_predicted":2,"tokens_evaluated":11}',
    '{"index":0,"content":"w8140","tokens":[8140],"stop":false,"id_slot":-1,"tokens_predicted":3,"tokens_evaluated":11}',
    '{"tokens":[],"stop":true,"stop_type":"limit","tokens_predicted":3,"tokens_evaluated":11,"timings":{"cache_n":10,'
    '"prompt_n":1,"prompt_ms":64.772,"prompt_per_second":15.4,"predicted_n":3,"predicted_ms":81.6}}',
)


def tape() -> LlamaCppTape:
    turn = Turn(np.arange(500, 511, dtype=np.int32), 3)
    made = LlamaCppTape(Conversation("one", (turn, turn)))
    made.turn(turn)
    return made


def read(*documents: str, status: int = 200) -> Answer:
    events = [(index, f"data: {document}\n\n".encode()) for index, document in enumerate(documents)]
    return tape().read(Reply(status=status, pieces=events))


def test_recorded_stream_is_read_whole():
    answer = read(*RECORDED)
    assert (answer.error, answer.ids, answer.times_us) == (None, [532, 12941, 8140], [0, 1, 2])
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (11, 3, 10)


def test_body_asks_for_exactly_as_many_tokens_and_never_for_its_prompt_back():
    sent = tape()
    body: dict[str, Any] = msgspec.json.decode(sent.body(Ask("any"), Turn(np.arange(3, dtype=np.int32), 7)))
    assert body["prompt"] == list(range(500, 511))
    assert (body["n_predict"], body["ignore_eos"], body["stream"], body["temperature"]) == (
        7,
        True,
        True,
        0.0,
    )
    assert "prompt" not in body["response_fields"]


def test_ids_held_back_with_half_a_character_leave_none_known():
    answer = read(RECORDED[0], RECORDED[2], RECORDED[3])
    assert (answer.error, answer.ids, answer.event_tokens, answer.output_tokens) == (None, None, None, 3)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (RECORDED[:2], "finish_reason None"),
        (('{"error":{"code":500,"message":"Compute error.","type":"server_error"}}',), "Compute error."),
        ((RECORDED[0], '{"stop":true,"stop_type":"none"}'), "not a stream of completions"),
    ],
    ids=["cut", "error", "no counts"],
)
def test_answer_that_is_not_whole_says_why(documents: tuple[str, ...], said: str):
    assert said in (read(*documents).error or "")


def test_refusal_is_told_in_its_own_words():
    body = b'{"error":{"code":400,"message":"Prompt contains invalid tokens","type":"invalid_request_error"}}'
    answer = tape().read(Reply(status=400, pieces=[(0, body)]))
    assert answer.error == "HTTP 400: Prompt contains invalid tokens"


def test_rounds_of_a_comparison_become_its_repeats(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    from llama_cpp_agentic import together

    levels = tuple(Level(load, 0, (Row("a", 0, 1, 0, 1),)) for load in (1, 2))
    one = Result("x", "h0", "c0ffee", "2026-01-01", 0, "none", 1, {"repeats": 1}, {}, "real", levels)
    whole = together([one, one, one])
    assert [(level.load, level.repeat) for level in whole.levels] == [
        (load, repeat) for repeat in range(3) for load in (1, 2)
    ]
    assert whole.config["repeats"] == 3


@pytest.mark.skipif(
    not (SERVER and MODEL), reason="LLAMA_SERVER and LLAMA_GGUF name no llama.cpp and its model"
)
def test_real_server_passes_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    from llama_cpp_agentic import llama_cpp_command, serving

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    out = tmp_path / "result.json"
    command = llama_cpp_command(
        Path(SERVER or ""), Path(MODEL or ""), port=port, users=2, context_tokens=1024, threads=1
    )
    with serving(command, port, tmp_path / "words.log") as url:
        small = ["--scale", "0.004", "--turns-max", "3", "--concurrency", "1,2"]
        status = main(
            ["--url", url, "--api", "llama.cpp", "--block-tokens", "1", *small, "--out", str(out)]
        )  # fmt: skip
    result = record.read(out)
    failed = [
        check
        for repeats in by_load(result).values()
        for each in repeats
        for check in each.checks
        if not check.passed
    ]
    assert (status, failed, result.answers) == (0, [], "real")
    rows = [row for level in result.levels for row in level.rows]
    # Alone, a slot holds all that its session sent and was told, save the token sampled last: reuse to the token.
    assert all(row.cached_tokens == row.implied_least for row in result.levels[0].rows)
    assert all(row.event_tokens == (1,) * row.output_tokens for row in rows)
