# SPDX-License-Identifier: MIT
"""`LLM` on the bundled model: completions in order, text equal to the ids, stops, errors before any work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import tokenspeed
from tokenspeed.base.errors import EngineDeadError, RequestError, SetupError
from tokenspeed.base.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, tokens_max=24)
PROMPTS = ["def fibonacci(n):\n", "import os\n\n", "class Stack:\n"]


@pytest.fixture(scope="module")
def llm() -> Iterator[tokenspeed.LLM]:
    with tokenspeed.LLM(threads=1, kv_cache_bytes=64 << 20, max_model_len=4096, log_level="error") as made:
        yield made


def test_completions_come_in_order_and_alone_equal_together(llm: tokenspeed.LLM) -> None:
    together = llm.generate(PROMPTS, GREEDY)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in PROMPTS]
    assert [done.token_ids for done in together] == [done.token_ids for done in alone]
    for done in together:
        assert done.finish_reason in ("stop", "length")
        assert done.text == llm.text.tokenizer.decode(done.token_ids, skip_special_tokens=True)


def test_token_ids_and_text_are_the_same_prompt(llm: tokenspeed.LLM) -> None:
    ids = llm.text.tokenizer.encode(PROMPTS[0], add_special_tokens=True)
    assert llm.generate(ids, GREEDY)[0].token_ids == llm.generate(PROMPTS[0], GREEDY)[0].token_ids
    assert llm.generate([ids, ids], GREEDY)[1].prompt_tokens == len(ids)
    assert llm.generate(list(np.array(ids)), GREEDY)[0].prompt_tokens == len(ids)


def test_a_stop_string_is_not_part_of_the_text(llm: tokenspeed.LLM) -> None:
    whole = llm.generate(PROMPTS[0], GREEDY, ignore_eos=True)[0]
    stop = whole.text[8:11]
    cut = llm.generate(PROMPTS[0], GREEDY, stop=[stop], ignore_eos=True)[0]
    assert llm.generate(PROMPTS[0], GREEDY, stop=stop, ignore_eos=True)[0].token_ids == cut.token_ids
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert len(cut.token_ids) < len(whole.token_ids)


def test_logprobs_are_one_per_token(llm: tokenspeed.LLM) -> None:
    done = llm.generate(PROMPTS[1], SamplingParams(temperature=0.0, tokens_max=5, logprobs=2))[0]
    assert done.logprobs is not None
    assert [entry.id for entry in done.logprobs] == done.token_ids
    assert llm.generate(PROMPTS[1], GREEDY)[0].logprobs is None


def test_a_conversation_is_answered(llm: tokenspeed.LLM) -> None:
    messages = [{"role": "user", "content": "List the files."}]
    one = llm.chat(messages, GREEDY)
    several = llm.chat([messages, [*messages]], GREEDY)
    assert [done.token_ids for done in several] == [one[0].token_ids] * 2
    assert one[0].prompt_tokens > 4


def test_seeds_decide_and_are_drawn_when_absent(llm: tokenspeed.LLM) -> None:
    def sample(seed: int) -> list[int]:
        return llm.generate(PROMPTS[2], SamplingParams(tokens_max=24, seed=seed))[0].token_ids

    assert sample(5) == sample(5) != sample(6)
    assert llm.generate(PROMPTS[2], SamplingParams(tokens_max=24))[0].token_ids


def test_one_bad_prompt_stops_the_call_before_any_work(llm: tokenspeed.LLM) -> None:
    with pytest.raises(RequestError, match="5000 tokens"):
        llm.generate([[1], [1] * 5000], GREEDY)
    with pytest.raises(RequestError, match="top_p"):
        llm.generate(PROMPTS, SamplingParams(top_p=0.0))
    with pytest.raises(RequestError, match="tokens_max: expected int"):
        llm.generate(PROMPTS, SamplingParams(tokens_max=5.5))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="3 prompts came with 2"):
        llm.generate(PROMPTS, [GREEDY, GREEDY])
    with pytest.raises(RequestError, match=r"prompts must be a text, a list of token ids.*got int"):
        llm.generate(5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="a prompt must be a text or a list of token ids; got float"):
        llm.generate(["a", 0.5])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match=r'messages must be a list of \{"role": .*got str'):
        llm.chat("hi")  # pyright: ignore[reportArgumentType]


def test_more_prompts_than_places_are_all_served() -> None:
    with tokenspeed.LLM(
        threads=1, kv_cache_bytes=32 << 20, max_model_len=1024, rows_max=2, waiting_max=2, log_level="error"
    ) as small:
        done = small.generate([[i] for i in range(12)], SamplingParams(temperature=0.0, tokens_max=3))
    assert len(done) == 12
    with pytest.raises(EngineDeadError, match="closed"):
        small.generate([[1]], GREEDY)


def test_the_progress_bar_is_drawn_when_asked_for(
    llm: tokenspeed.LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate(PROMPTS, GREEDY)
    assert capsys.readouterr().err == ""
    llm.generate(PROMPTS, GREEDY, progress=True)
    drawn = capsys.readouterr().err.split("\r")[-1]
    assert drawn.startswith("[########################] 3/3 prompts, ")
    assert drawn.endswith(" tokens/s \n")


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(SetupError, match="no_such_option"):
        tokenspeed.LLM(no_such_option=1)
    with pytest.raises(SetupError, match="api_key, port: only `tokenspeed serve`"):
        tokenspeed.LLM(port=9000, api_key="x", log_level="error")
    with pytest.raises(SetupError, match="give a tuple"):
        tokenspeed.LLM(kernel="norm.rms=ref")
    with pytest.raises(SetupError, match="no directory here"):
        tokenspeed.LLM("/no/such/model")


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, tokenspeed; sys.exit(bool({'torch', 'numpy', 'zmq'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
