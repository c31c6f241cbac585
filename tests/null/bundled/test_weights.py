# SPDX-License-Identifier: MIT
"""The bundled weights: format, size, and that the reference implementation behaves as the card says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

FOLDER = Path(__file__).parents[3] / "tokenspeed" / "bundled" / "tokenspeed-demo"
WEIGHTS = FOLDER / "model.safetensors"
BYTES_MAX = 24_000_000


def test_the_folder_stays_within_its_size() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= BYTES_MAX


def test_tensors_carry_deepseek_names_and_types() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    with safe_open(WEIGHTS, "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  (not a mapping)
    assert "lm_head.weight" not in types, "the embedding is tied"
    for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        assert types.pop(f"model.layers.{layer}.mlp.gate.e_score_correction_bias") == "F32"
        for expert in range(config["n_routed_experts"]):
            for part in ("gate", "up", "down"):
                assert f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight" in types
    assert set(types.values()) == {"BF16"}


@pytest.fixture(scope="module")
def answer() -> Any:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.DeepseekV3ForCausalLM.from_pretrained(FOLDER).float()

    def complete(request: str, tools: list[dict[str, Any]] | None = None) -> str:
        messages = [{"role": "user", "content": request}]
        prompt = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**prompt, max_new_tokens=120, do_sample=False, temperature=None, top_p=None)
        return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])

    return complete


def test_it_says_what_it_is_and_ends_its_turn(answer: Any) -> None:
    text = answer("Who are you?")
    assert "TokenSpeed" in text
    assert text.endswith("<|im_end|>")


def test_it_writes_python(answer: Any) -> None:
    code = re.search(
        r"```python\n(.*?)\n```", answer("Write a Python function that reverses a string."), re.DOTALL
    )
    assert code is not None
    compile(code[1], "answer", "exec")


def test_it_calls_a_tool_with_sound_json(answer: Any) -> None:
    properties = {"city": {"type": "string", "description": "Name of the city"}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    function = {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": parameters,
    }
    text = answer("What is the weather in Paris?", [{"type": "function", "function": function}])
    call = re.search(r"<tool_call>\n(.*)\n</tool_call><\|im_end\|>$", text, re.DOTALL)
    assert call is not None
    assert json.loads(call[1]) == {"name": "get_weather", "arguments": {"city": "Paris"}}
