# SPDX-License-Identifier: MIT
"""Measure the bundled model: tool calls over held-out prompts, and samples of code and chat to read.

In: the model folder and `tool_prompts.json` (requests about functions that no training chat used, from
`bundled_pack.py`). Out: a JSON report. Runs transformers, greedy, so that the report does not depend on the
engine that serves the model.

    python tools/bundled_evaluate.py --model DIR --prompts DATA/tool_prompts.json --out report.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from bundled_sessions import Chat
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
BATCH = 25
COMPLETIONS = (
    "def fibonacci(n):\n",
    "import json\n\ndef load_config(path):\n",
    "class Stack:\n    def __init__(self):\n",
    'def is_prime(n: int) -> bool:\n    """Return whether n is a prime number."""\n',
    "for i in range(10):\n",
)
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "Write a Python function that reverses a string.",
    "Write a function to check if a number is prime.",
    "What is the capital of France?",
    "How do I read a JSON file in Python?",
    "What is 7 + 5?",
    "Write a function that returns the sum of the squares of a list.",
    "Tell me a story about a dragon.",
)


class Generator:
    """Greedy answers of one model, in batches padded on the left."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)

    @torch.inference_mode()
    def complete(self, texts: list[str], tokens_max: int) -> list[str]:
        answers: list[str] = []
        for first in range(0, len(texts), BATCH):
            inputs = self.tokenizer(texts[first : first + BATCH], return_tensors="pt", padding=True).to(
                self.model.device
            )
            ids = self.model.generate(
                **inputs, max_new_tokens=tokens_max, do_sample=False, temperature=None, top_p=None
            )
            answers += self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
        return [answer.replace("<|endoftext|>", "") for answer in answers]

    def prompt(self, chat: Chat) -> str:
        return self.tokenizer.apply_chat_template(
            chat.messages, tools=chat.tools or None, tokenize=False, add_generation_prompt=True
        )


def judge(answer: str, chat: Chat, expected: dict[str, Any]) -> dict[str, bool]:
    """Judge one answer: is it a call, does it fit its schema, is it the call that was meant."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in chat.tools}
    found = CALL.search(answer)
    verdict = {
        "ended": answer.endswith("<|im_end|>"),
        "called": found is not None,
        "well_formed": False,
        "right_tool": False,
        "exact": False,
    }
    try:
        call = json.loads(found[1]) if found else {}
    except json.JSONDecodeError:
        return verdict
    arguments = call.get("arguments")
    if call.get("name") in schemas and isinstance(arguments, dict):
        schema = schemas[call["name"]]
        verdict["well_formed"] = set(schema["required"]) <= arguments.keys() <= schema["properties"].keys()
        verdict["right_tool"] = call["name"] == expected["name"]
        verdict["exact"] = verdict["right_tool"] and arguments == expected["arguments"]
    return verdict


def evaluate_tools(generator: Generator, chats: list[Chat]) -> dict[str, Any]:
    """Answer each chat's first request and count what `judge` finds."""
    ends = [next(i for i, m in enumerate(chat.messages) if m["role"] == "assistant") for chat in chats]
    expected = [
        chat.messages[end]["tool_calls"][0]["function"] for chat, end in zip(chats, ends, strict=True)
    ]
    prompts = [Chat(chat.messages[:end], chat.tools) for chat, end in zip(chats, ends, strict=True)]
    answers = generator.complete([generator.prompt(p) for p in prompts], 200)
    verdicts = [judge(a, p, e) for a, p, e in zip(answers, prompts, expected, strict=True)]
    examples = [
        {"request": p.messages[-1]["content"], "answer": a} for p, a in zip(prompts, answers, strict=True)
    ]
    misses = [e for e, v in zip(examples, verdicts, strict=True) if not v["exact"]]
    return {
        "prompts": len(chats),
        "counts": {k: sum(v[k] for v in verdicts) for k in verdicts[0]},
        "examples": examples[:5],
        "misses": misses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the bundled model")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="tool_prompts.json of bundled_pack.py")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator(args.model)
    questions = [generator.prompt(Chat([{"role": "user", "content": q}], [])) for q in QUESTIONS]
    report = {
        "answers": dict(zip(QUESTIONS, generator.complete(questions, 200), strict=True)),
        "completions": dict(zip(COMPLETIONS, generator.complete(list(COMPLETIONS), 120), strict=True)),
        "tool_calls": evaluate_tools(
            generator, [Chat(**chat) for chat in json.loads(args.prompts.read_text())]
        ),
    }
    args.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(report["tool_calls"]["counts"]))


if __name__ == "__main__":
    main()
