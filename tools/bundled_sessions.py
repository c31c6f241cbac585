# SPDX-License-Identifier: MIT
"""Turn recorded agent sessions into training chats: whole sessions, and short windows that begin with a tool
list.

In: `bundled_corpus.Session`. Out: `Chat` values (messages and tool schemas, ready for the chat template). The
recorded system prompts belong to other agents and are replaced by short ones of our own, together with
schemas inferred from the calls themselves; machine paths that name a benchmark's work folders are shortened.
Does not tokenise. Invariant: a chat's tool calls name only tools of its list."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bundled_corpus import Message, Session

WORK_FOLDER = re.compile(
    r"/home/ubuntu/OmniPerf-Bench/perf-agents-bench/\.work/worktrees/([a-z]+)_core/[\w-]+"
)
TOOL_RESULT_CHARS_MAX = 1200
WINDOW_CHARS_MAX = 7000
HELD_OUT_EVERY = 25
JSON_TYPES = {
    "str": "string",
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "list": "array",
    "dict": "object",
}

SYSTEM_PROMPTS = (
    "You are a coding agent. Use the tools to read, change and test the code.",
    "You are a helpful coding assistant working in the user's repository.",
    "You are a software engineer. Work step by step and use the tools.",
    "You help with programming tasks. Call tools when you need them.",
    "You are an agent that solves tasks in a terminal.",
    "",
)
DESCRIPTIONS = {
    "bash": "Run a shell command and return its output.",
    "Bash": "Run a shell command and return its output.",
    "str_replace_based_edit_tool": "View, create and edit files.",
    "Read": "Read a file.",
    "Edit": "Replace a string in a file by another.",
    "Write": "Write a whole file.",
    "Grep": "Search file contents with a regular expression.",
    "Glob": "Find files by a name pattern.",
    "task_done": "Report that the task is finished.",
    "Task": "Start a sub-agent on a task of its own.",
    "TodoWrite": "Write the list of things to do.",
    "todo_write": "Write the list of things to do.",
    "TaskCreate": "Add a task to the list.",
    "TaskUpdate": "Change the state of a task.",
    "WebFetch": "Fetch a web page and answer a question about it.",
    "WebSearch": "Search the web.",
    "sequentialthinking": "Think through a problem step by step.",
}


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation as the chat template takes it; `tools` are OpenAI function schemas."""

    messages: list[Message]
    tools: list[dict[str, Any]]


def function_tool(
    name: str, description: str, properties: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    """Build an OpenAI function schema."""
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def is_held_out(group: str) -> bool:
    """Say whether a task group belongs to the validation part (one in `HELD_OUT_EVERY`)."""
    return sum(group.encode()) % HELD_OUT_EVERY == 0


def clean(session: Session) -> list[Message]:
    """Drop system prompts, shorten work paths, keep only calls whose arguments are a JSON object."""
    messages: list[Message] = []
    for message in session.messages:
        if message["role"] == "system":
            continue
        kept: Message = {"role": message["role"], "content": _shorten(message.get("content") or "")}
        if message["role"] == "assistant":
            kept["content"] = kept["content"].strip()
            if reasoning := message.get("reasoning_content"):
                kept["reasoning_content"] = _shorten(reasoning.strip())
            kept["tool_calls"] = [call for c in message.get("tool_calls") or [] if (call := _clean_call(c))]
            if not kept["content"] and not kept["tool_calls"]:
                continue
        messages.append(kept)
    return messages


def _shorten(text: str) -> str:
    return WORK_FOLDER.sub(r"/workspace/\1", text)


def _clean_call(call: dict[str, Any]) -> dict[str, Any] | None:
    arguments = call["function"]["arguments"]
    try:
        arguments = json.loads(_shorten(arguments)) if isinstance(arguments, str) else arguments
    except json.JSONDecodeError:
        return None
    if not isinstance(arguments, dict):
        return None
    return {"type": "function", "function": {"name": call["function"]["name"], "arguments": arguments}}


def infer_tools(histories: list[list[Message]]) -> dict[str, dict[str, Any]]:
    """Infer each tool's schema from all its calls: properties by use, required when nearly always given."""
    uses: Counter[str] = Counter()
    given: defaultdict[str, Counter[str]] = defaultdict(Counter)
    types: dict[tuple[str, str], str] = {}
    for messages in histories:
        for function in _calls(messages):
            name = function["name"]
            uses[name] += 1
            for key, value in function["arguments"].items():
                given[name][key] += 1
                types.setdefault((name, key), JSON_TYPES.get(type(value).__name__, "string"))
    schemas = {}
    for name, count in uses.items():
        keys = [key for key, times in given[name].most_common() if times > 0.002 * count]
        properties = {key: {"type": types[name, key]} for key in keys}
        required = [key for key in keys if given[name][key] > 0.95 * count]
        schemas[name] = function_tool(
            name, DESCRIPTIONS.get(name, name.replace("_", " ")), properties, required
        )
    return schemas


def _calls(messages: list[Message]) -> Iterator[dict[str, Any]]:
    for message in messages:
        for call in message.get("tool_calls") or []:
            yield call["function"]


def whole(messages: list[Message], schemas: dict[str, dict[str, Any]], rng: random.Random) -> Chat:
    """Make one chat of a whole session."""
    names = {function["name"] for function in _calls(messages)}
    tools = [schemas[name] for name in sorted(names)]
    return Chat(_with_system(messages, rng), tools)


def windows(
    messages: list[Message], schemas: dict[str, dict[str, Any]], rng: random.Random
) -> Iterator[Chat]:
    """Cut a session into short chats, each opened by a user message and the tool list."""
    task = next((m for m in messages if m["role"] == "user"), None)
    if task is None:
        return
    start = 0
    while start < len(messages):
        window: list[Message] = []
        size = 0
        index = start
        while index < len(messages) and size < WINDOW_CHARS_MAX:
            message = _truncated(messages[index])
            size += len(json.dumps(message))
            window.append(message)
            index += 1
        while window and window[-1]["role"] != "assistant":
            window.pop()
        if any(m["role"] == "assistant" for m in window):
            if window[0]["role"] != "user":
                window.insert(0, _truncated(task))
            names = {function["name"] for function in _calls(window)}
            others = [name for name in schemas if name not in names and name in DESCRIPTIONS]
            names.update(rng.sample(others, min(len(others), rng.randint(0, 4))))
            tools = [schemas[name] for name in rng.sample(sorted(names), len(names))]
            yield Chat(_with_system(window, rng), tools)
        start = index


def _truncated(message: Message) -> Message:
    content = message["content"]
    if message["role"] == "assistant" or len(content) <= TOOL_RESULT_CHARS_MAX:
        return message
    return {**message, "content": content[:TOOL_RESULT_CHARS_MAX] + "\n[truncated]"}


def _with_system(messages: list[Message], rng: random.Random) -> list[Message]:
    prompt = rng.choice(SYSTEM_PROMPTS)
    return [{"role": "system", "content": prompt}, *messages] if prompt else list(messages)
