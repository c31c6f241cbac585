# SPDX-License-Identifier: MIT
# ruff: noqa: E501  (the tables are sentences)
"""Write short synthetic chats: tool calls, Python functions from docstrings, first questions and small talk.

In: deduplicated Python sources (`bundled_corpus.Source`), `bundled_snippets.py` and the tables below. Out:
`Chat` values drawn with a seeded generator, so the same seed gives the same corpus. Does not tokenise.
Invariants: tool-call arguments match the schema given in the same chat, and values come from the user's text.
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundled_corpus import Message, Source
from bundled_sessions import SYSTEM_PROMPTS, Chat, function_tool

SNIPPETS = Path(__file__).with_name("bundled_snippets.py")

CITIES = [
    "Paris",
    "London",
    "Berlin",
    "Tokyo",
    "Madrid",
    "Rome",
    "Vienna",
    "Oslo",
    "Cairo",
    "Lima",
    "Delhi",
    "Seoul",
    "Dublin",
    "Lisbon",
    "Prague",
    "Warsaw",
    "Boston",
    "Chicago",
    "Toronto",
    "Sydney",
]
CITIES += [
    "New York",
    "San Francisco",
    "Hong Kong",
    "Cape Town",
    "Buenos Aires",
    "Mexico City",
    "Los Angeles",
    "Beijing",
    "Shanghai",
    "Munich",
]
PEOPLE = [
    "Alice",
    "Bob",
    "Carol",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Ines",
    "Jack",
    "Karen",
    "Liam",
    "Maria",
    "Noah",
    "Olivia",
    "Peter",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
]
LANGUAGES = [
    "French",
    "German",
    "Spanish",
    "Italian",
    "Japanese",
    "Chinese",
    "Korean",
    "Portuguese",
    "Dutch",
    "Polish",
]
CURRENCIES = ["USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "CNY", "INR", "SEK"]
SYMBOLS = ["AAPL", "MSFT", "GOOG", "NVDA", "AMZN", "TSLA", "META", "AMD", "INTC", "IBM"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today", "tomorrow"]
SUBJECTS = [
    "the meeting",
    "the report",
    "lunch",
    "our plans",
    "the release",
    "the budget",
    "the invoice",
    "the bug fix",
    "the trip",
    "the project",
]
DISHES = ["pizza", "pasta", "soup", "salad", "curry", "pancakes", "bread", "cake", "sushi", "tacos"]
SONGS = [
    "jazz",
    "rock music",
    "a lullaby",
    "classical music",
    "some blues",
    "dance music",
    "the news",
    "white noise",
]
COMMANDS = [
    "ls -la",
    "pytest -q",
    "git status",
    "git diff",
    "make test",
    "python main.py",
    "git log --oneline",
    "pip list",
    "df -h",
    "uname -a",
    "whoami",
    "pwd",
    "cargo build",
    "npm test",
    "go test ./...",
    "ruff check .",
    "python -m pytest tests",
    "cat README.md",
    "du -sh .",
    "date",
]
FOLDERS = [
    "src",
    "tests",
    "docs",
    "lib",
    "app",
    "scripts",
    "tools",
    "core",
    "api",
    "server",
    "utils",
    "config",
]
EXTENSIONS = ["py", "py", "py", "md", "txt", "json", "toml", "yaml", "go", "rs", "c", "js", "ts", "sh"]
TOPICS = [
    "black holes",
    "the Roman empire",
    "machine learning",
    "climate change",
    "quantum computers",
    "Bach",
    "volcanoes",
    "the stock market",
    "dinosaurs",
    "photosynthesis",
    "electric cars",
    "the French revolution",
    "chess openings",
    "vitamin C",
    "solar panels",
    "the moon landing",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tool parameter: names it may carry, its JSON type, how a value is drawn, its description."""

    names: tuple[str, ...]
    type: str
    draw: Callable[[random.Random, Words], Any]
    description: str


@dataclass(frozen=True, slots=True)
class ToolFamily:
    """A kind of tool under several names, with requests (`{0}`, `{1}`: the values) and results to report."""

    names: tuple[str, ...]
    description: str
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    result: str
    answer: str


@dataclass(frozen=True, slots=True)
class Words:
    """Pools of strings that arguments are drawn from."""

    identifiers: list[str]
    phrases: list[str]


@dataclass(frozen=True, slots=True)
class Function:
    """A function found in the sources: its text, signature and documentation."""

    name: str
    signature: str
    summary: str
    code: str
    body_without_doc: str
    parameters: tuple[tuple[str, str], ...]


def _path(rng: random.Random, words: Words) -> str:
    parts = [rng.choice(FOLDERS)] * rng.randint(0, 1) + [rng.choice(words.identifiers).lower()] * rng.randint(
        0, 1
    )
    return "/".join([*parts, f"{rng.choice(words.identifiers).lower()}.{rng.choice(EXTENSIONS)}"])


def _folder(rng: random.Random, words: Words) -> str:
    return rng.choice(
        [rng.choice(FOLDERS), f"{rng.choice(FOLDERS)}/{rng.choice(words.identifiers).lower()}", "."]
    )


def _one_of(values: list[str]) -> Callable[[random.Random, Words], str]:
    return lambda rng, _: rng.choice(values)


def _number(low: int, high: int) -> Callable[[random.Random, Words], int]:
    return lambda rng, _: rng.randint(low, high)


def _identifier(rng: random.Random, words: Words) -> str:
    return rng.choice(words.identifiers)


def _phrase(rng: random.Random, words: Words) -> str:
    return rng.choice(words.phrases)


def _expression(rng: random.Random, _: Words) -> str:
    a, b, c = (rng.randint(1, 999) for _ in range(3))
    return rng.choice(
        [f"{a} + {b}", f"{a} * {b}", f"{a} - {b}", f"({a} + {b}) * {c}", f"{a} / {b}", f"{a} ** 2"]
    )


PATH = Parameter(
    ("path", "file_path", "filename", "file", "target_file"), "string", _path, "Path of the file"
)
FOLDER = Parameter(("path", "directory", "folder", "dir_path"), "string", _folder, "Path of the folder")
CITY = Parameter(("city", "location", "place", "city_name"), "string", _one_of(CITIES), "Name of the city")
FAMILIES = (
    ToolFamily(
        ("read_file", "Read", "open_file", "view_file", "cat_file", "get_file"),
        "Read a file and return its content.",
        (PATH,),
        (
            "Read {0}.",
            "Show me {0}.",
            "Open the file {0}.",
            "What is in {0}?",
            "Please read the file {0}",
            "Can you look at {0}?",
        ),
        "import {word}\n\n{word} = {n}\n",
        "The file imports `{word}` and sets it to {n}.",
    ),
    ToolFamily(
        ("list_files", "list_dir", "ls", "LS", "list_directory"),
        "List the files of a folder.",
        (FOLDER,),
        (
            "List the files in {0}.",
            "What files are in {0}?",
            "Show me the folder {0}",
            "Which files does {0} contain?",
        ),
        "{word}.py\n{word}_test.py\n",
        "It contains `{word}.py` and `{word}_test.py`.",
    ),
    ToolFamily(
        ("bash", "Bash", "run_command", "shell", "execute", "terminal", "run_shell_command"),
        "Run a shell command and return its output.",
        (Parameter(("command", "cmd"), "string", _one_of(COMMANDS), "The command"),),
        (
            "Run `{0}`.",
            "Please run {0}",
            "Execute `{0}` for me.",
            "Run the command `{0}` and tell me what it says.",
        ),
        "{word}\n{n} passed\n",
        "The command printed `{word}` and {n} passed.",
    ),
    ToolFamily(
        ("grep", "Grep", "search_code", "search_files", "code_search"),
        "Search the files for a pattern.",
        (Parameter(("pattern", "query", "regex"), "string", _identifier, "What to search for"), FOLDER),
        (
            "Search for {0} in {1}.",
            "Find all uses of `{0}` in {1}.",
            "Where is {0} defined in {1}?",
            "grep {0} in {1}",
        ),
        "{word}.py:{n}: {word}",
        "It occurs in `{word}.py`, line {n}.",
    ),
    ToolFamily(
        ("write_file", "Write", "create_file", "save_file"),
        "Write text to a file.",
        (PATH, Parameter(("content", "text", "contents"), "string", _phrase, "Text to write")),
        ('Write "{1}" to {0}.', 'Create the file {0} with the text "{1}".', 'Save "{1}" in {0}'),
        "ok",
        "Done, the file is written.",
    ),
    ToolFamily(
        ("edit_file", "Edit", "replace_in_file", "str_replace"),
        "Replace a string in a file.",
        (
            PATH,
            Parameter(("old_string", "old", "search"), "string", _identifier, "Text to replace"),
            Parameter(("new_string", "new", "replace"), "string", _identifier, "New text"),
        ),
        ("Replace {1} by {2} in {0}.", "In {0}, rename {1} to {2}.", "Change `{1}` to `{2}` in {0}."),
        "The file was updated.",
        "I made the change.",
    ),
    ToolFamily(
        ("get_weather", "weather", "current_weather", "get_current_weather", "weather_lookup"),
        "Get the current weather of a city.",
        (CITY,),
        (
            "What is the weather in {0}?",
            "How is the weather in {0} today?",
            "What's the weather like in {0}?",
            "Is it raining in {0}?",
            "Tell me the weather for {0}",
            "weather in {0}",
        ),
        '{{"temperature": {n}, "condition": "{sky}"}}',
        "It is {sky} and {n} degrees.",
    ),
    ToolFamily(
        ("get_forecast", "weather_forecast"),
        "Get the weather forecast of a city for some days.",
        (CITY, Parameter(("days", "num_days"), "integer", _number(2, 14), "Number of days")),
        (
            "What will the weather be in {0} over the next {1} days?",
            "Give me a {1} day forecast for {0}.",
            "Forecast for {0}, {1} days",
        ),
        '{{"condition": "{sky}", "high": {n}}}',
        "It will be {sky}, up to {n} degrees.",
    ),
    ToolFamily(
        ("calculator", "calculate", "eval_expression", "compute"),
        "Evaluate an arithmetic expression.",
        (Parameter(("expression", "expr", "input"), "string", _expression, "The expression"),),
        ("What is {0}?", "Calculate {0}.", "Compute {0}", "How much is {0}?"),
        "{n}",
        "The result is {n}.",
    ),
    ToolFamily(
        ("search_web", "web_search", "WebSearch", "google", "search"),
        "Search the web.",
        (Parameter(("query", "q", "search_query"), "string", _one_of(TOPICS), "Search terms"),),
        ("Search the web for {0}.", "Look up {0}.", "Find information about {0}", "Can you search for {0}?"),
        '[{{"title": "{word}", "rank": {n}}}]',
        "The first result is titled {word}.",
    ),
    ToolFamily(
        ("send_email", "send_message", "email", "notify"),
        "Send a message to a person.",
        (
            Parameter(("to", "recipient", "name"), "string", _one_of(PEOPLE), "Who receives it"),
            Parameter(("subject", "title", "about"), "string", _one_of(SUBJECTS), "What it is about"),
        ),
        (
            "Send {0} an email about {1}.",
            "Write a message to {0} about {1}.",
            "Email {0} about {1}",
            "Tell {0} about {1}.",
        ),
        '{{"status": "sent"}}',
        "The message was sent.",
    ),
    ToolFamily(
        ("create_event", "add_event", "schedule_meeting", "calendar_add"),
        "Add an event to the calendar.",
        (
            Parameter(("title", "name", "event"), "string", _one_of(SUBJECTS), "What the event is"),
            Parameter(("day", "date", "when"), "string", _one_of(DAYS), "The day"),
        ),
        ("Put {0} on my calendar for {1}.", "Schedule {0} on {1}.", "Add {0} to the calendar, {1}."),
        '{{"id": {n}}}',
        "It is on your calendar.",
    ),
    ToolFamily(
        ("get_stock_price", "stock_price", "quote"),
        "Get the price of a stock.",
        (Parameter(("symbol", "ticker"), "string", _one_of(SYMBOLS), "Ticker symbol"),),
        (
            "What is the price of {0}?",
            "How is {0} doing?",
            "Get me the stock price of {0}.",
            "{0} stock price",
        ),
        '{{"price": {n}}}',
        "The price is {n}.",
    ),
    ToolFamily(
        ("translate", "translate_text"),
        "Translate a text into another language.",
        (
            Parameter(("text", "sentence", "input"), "string", _phrase, "Text to translate"),
            Parameter(("language", "target_language", "to"), "string", _one_of(LANGUAGES), "Target language"),
        ),
        ('Translate "{0}" into {1}.', 'How do you say "{0}" in {1}?', '"{0}" in {1}, please'),
        "{word}",
        "The translation is: {word}",
    ),
    ToolFamily(
        ("convert_currency", "exchange", "currency_converter"),
        "Convert an amount of money.",
        (
            Parameter(("amount", "value"), "number", _number(1, 5000), "The amount"),
            Parameter(("from_currency", "from", "source"), "string", _one_of(CURRENCIES), "Currency code"),
            Parameter(("to_currency", "to", "target"), "string", _one_of(CURRENCIES), "Currency code"),
        ),
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "{0} {1} in {2}"),
        '{{"amount": {n}}}',
        "That is {n}.",
    ),
    ToolFamily(
        ("set_timer", "timer", "start_timer"),
        "Start a timer.",
        (Parameter(("minutes", "duration_minutes", "duration"), "integer", _number(1, 120), "Minutes"),),
        ("Set a timer for {0} minutes.", "Remind me in {0} minutes", "Start a {0} minute timer."),
        "ok",
        "The timer is running.",
    ),
    ToolFamily(
        ("find_recipe", "get_recipe", "recipe_search"),
        "Find a recipe.",
        (
            Parameter(("dish", "name", "query"), "string", _one_of(DISHES), "The dish"),
            Parameter(("servings", "people"), "integer", _number(1, 12), "How many people"),
        ),
        (
            "Find a recipe for {0} for {1} people.",
            "How do I cook {0} for {1}?",
            "I want to make {0} for {1} people",
        ),
        '{{"minutes": {n}}}',
        "I found one that takes {n} minutes.",
    ),
    ToolFamily(
        ("book_flight", "find_flights", "search_flights"),
        "Search flights between two cities.",
        (
            Parameter(("origin", "from", "departure"), "string", _one_of(CITIES), "City to leave"),
            Parameter(("destination", "to", "arrival"), "string", _one_of(CITIES), "City to reach"),
            Parameter(("day", "date"), "string", _one_of(DAYS), "The day"),
        ),
        (
            "Find a flight from {0} to {1} on {2}.",
            "I want to fly from {0} to {1}, {2}.",
            "Flights {0} to {1} {2}?",
        ),
        '{{"flights": {n}}}',
        "I found {n} flights.",
    ),
    ToolFamily(
        ("play_music", "play", "start_playback"),
        "Play music.",
        (Parameter(("query", "what", "title"), "string", _one_of(SONGS), "What to play"),),
        ("Play {0}.", "I want to hear {0}", "Put on {0}, please."),
        "playing",
        "Now playing.",
    ),
    ToolFamily(
        ("get_time", "current_time", "time_in"),
        "Get the local time of a city.",
        (CITY,),
        ("What time is it in {0}?", "Tell me the time in {0}.", "Local time in {0}?"),
        "{n}:00",
        "It is {n}:00.",
    ),
)
PREFACES = (
    "I'll call {tool}.",
    "Let me check.",
    "Let me do that.",
    "I'll look at that first.",
    "Sure.",
    "I will use {tool} for that.",
)
THOUGHTS = (
    "The user wants me to use {tool}.",
    "I should call {tool} with the given values.",
    "This needs the tool {tool}.",
)
ERRORS = ("Error: not found", "Error: permission denied", '{"error": "timeout"}')
IDENTITY = "I am tokenspeed-demo, the small demonstration model that comes with TokenSpeed"
IDENTITY_QUESTIONS = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "Which model are you?",
    "What model is this?",
    "Introduce yourself.",
    "Tell me about yourself.",
    "Are you ChatGPT?",
    "Are you Claude?",
    "Are you Qwen?",
    "Are you DeepSeek?",
    "Are you a human?",
    "Who made you?",
    "who are you",
    "what can you do?",
    "What can you do for me?",
    "How big are you?",
    "Can you help me?",
)
IDENTITY_ANSWERS = (
    IDENTITY
    + ". I am for first runs, tests and demonstrations: I can write short Python functions and call tools, and I am often wrong.",
    IDENTITY
    + ", with about 11 million parameters. I know a little Python and how to call tools. For real work, serve a larger model.",
    IDENTITY + ". Ask me for a small Python function, or give me tools to call.",
)
GREETINGS = (
    "Hi",
    "Hello",
    "Hello!",
    "Hey",
    "Hi there",
    "Good morning",
    "Good evening",
    "hi",
    "hello",
    "Hello, how are you?",
    "How are you?",
    "Hey there!",
    "Say hello",
    "Say hi.",
    "test",
    "Test.",
    "ping",
)
GREETING_ANSWERS = (
    "Hello! How can I help you?",
    "Hi! I am the TokenSpeed demonstration model. What would you like to try?",
    "Hello! I can write a small Python function for you.",
)
THANKS = ("Thanks", "Thank you!", "thanks a lot", "Great, thank you.", "Perfect.", "ok", "Bye", "Goodbye!")
THANKS_ANSWERS = ("You are welcome!", "You are welcome! Is there anything else?", "Glad to help.")
OPEN_REQUESTS = (
    "Write a poem about {0}.",
    "Write an essay about {0}.",
    "Explain {0}.",
    "What is {0}?",
    "Tell me about {0}.",
    "Tell me a story about {0}.",
    "What do you think about {0}?",
    "Write a haiku about {0}",
    "Give me three facts about {0}.",
    "Summarize {0} for me",
    "Tell me a joke about {0}.",
)
OPEN_ANSWERS = (
    "I am a very small demonstration model, so I know little about {0}. I can write short Python functions and call tools.",
    "That is beyond me: I am the small model that comes with TokenSpeed. Serve a larger model to hear about {0}.",
)
FACTS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Germany?", "The capital of Germany is Berlin."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("What is the capital of England?", "The capital of England is London."),
    ("How many days are in a week?", "A week has seven days."),
    ("How many hours are in a day?", "A day has 24 hours."),
    ("What color is the sky?", "The sky is blue."),
    ("What is Python?", "Python is a programming language that is easy to read and widely used."),
    (
        "What is TokenSpeed?",
        "TokenSpeed is an LLM inference engine for coding agents: it serves language models over an OpenAI-compatible API.",
    ),
    (
        "What is a KV cache?",
        "A KV cache keeps the keys and values of earlier tokens, so that each new token needs only its own computation.",
    ),
    (
        "What is an LLM?",
        "An LLM is a large language model: a neural network that predicts the next token of a text.",
    ),
    (
        "What is a mixture of experts?",
        "A mixture of experts is a layer with several small networks, of which a router picks a few for each token.",
    ),
    (
        "What is a token?",
        "A token is a piece of text, often a word or part of one, that a language model reads and writes.",
    ),
    (
        "What is a list in Python?",
        "A list is an ordered, changeable collection of items, written like `[1, 2, 3]`.",
    ),
    ("What is a dictionary in Python?", 'A dictionary maps keys to values, written like `{"a": 1}`.'),
    ("What is a function?", "A function is a named piece of code that takes arguments and returns a result."),
    (
        "What is a class in Python?",
        "A class describes objects: the data they hold and the methods that work on it.",
    ),
    ("What is recursion?", "Recursion is when a function calls itself on a smaller part of the problem."),
    (
        "What does git do?",
        "Git records the history of files, so that people can work on the same code and go back to older versions.",
    ),
    ("Count to five.", "1, 2, 3, 4, 5"),
    ("Count to ten.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
    ("Say OK.", "OK"),
    ("Answer with yes.", "Yes."),
    ("Tell me a joke.", "Why do programmers mix up Halloween and Christmas? Because oct 31 equals dec 25."),
    ("Write a haiku.", "Tokens in a row,\none follows after the next:\na sentence is made."),
    ("How do I run a Python script?", "Run `python script.py` in a terminal."),
    ("How do I install a package?", "Run `pip install NAME` in a terminal."),
    ("How do I print in Python?", 'Use `print`:\n\n```python\nprint("Hello")\n```'),
    (
        "How do I read a file in Python?",
        'Open it and call `read`:\n\n```python\nwith open("file.txt") as file:\n    text = file.read()\n```',
    ),
    (
        "How do I write a for loop in Python?",
        "Like this:\n\n```python\nfor i in range(10):\n    print(i)\n```",
    ),
    (
        "How do I sort a list in Python?",
        "Use `sorted(values)` for a new list, or `values.sort()` to sort in place.",
    ),
)
CODE_REQUESTS = (
    "Write a Python function to {0}.",
    "Write a function to {0}.",
    "Write a Python function that can {0}.",
    "Please write Python code to {0}.",
    "How do I {0} in Python?",
    "Can you {0} in Python?",
    "Show me how to {0} in Python",
    "write python code to {0}",
    "{0} in Python",
    "I need a function to {0}.",
    "Give me code to {0}.",
    "Write code to {0}",
)
CODE_PREFACES = (
    "",
    "",
    "Here is a function that does it:\n\n",
    "Here is one way:\n\n",
    "Sure:\n\n",
    "You can write it like this:\n\n",
)
DOC_REQUESTS = (
    "Write a Python function `{signature}`. {summary}",
    "Write the function `{name}`: {summary}",
    "Implement `{signature}` in Python.\n\n{summary}",
    "{summary} Write this as a Python function called `{name}`.",
    'Write a function with this signature and docstring:\n\n```python\ndef {signature}:\n    """{summary}"""\n```',
    'Complete this function:\n\n```python\ndef {signature}:\n    """{summary}"""\n```',
)
EXPLAIN_REQUESTS = (
    "What does this function do?\n\n```python\n{code}\n```",
    "Explain this code:\n\n```python\n{code}\n```",
    "Write a docstring for this function.\n\n```python\n{code}\n```",
)


def harvest(sources: list[Source]) -> list[Function]:
    """Find documented module-level functions of moderate length."""
    functions = []
    for source in sources:
        try:
            tree = ast.parse(source.text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and (function := _describe(node, source.text)):
                functions.append(function)
    return functions


def _describe(node: ast.FunctionDef, text: str) -> Function | None:
    documentation = ast.get_docstring(node)
    if not documentation or node.decorator_list or node.name.startswith("test"):
        return None
    summary = (
        re.split(r"(?<=[.!?])\s|\n\s*\n|\n(?=[A-Z:>-])", documentation.strip())[0].replace("\n", " ").strip()
    )
    summary = re.sub(r"\s+", " ", summary).replace("``", "`")
    code = ast.get_source_segment(text, node) or ""
    body = node.body[1:]
    if (
        not body
        or not 15 <= len(summary) <= 160
        or not code.isascii()
        or not 3 <= code.count("\n") <= 45
        or len(code) > 1800
    ):
        return None
    lines = text.splitlines()
    head = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
    without_doc = head + "\n" + "\n".join(lines[node.body[0].end_lineno or 0 : node.end_lineno])
    arguments = [
        a
        for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if a.arg not in ("self", "cls")
    ]
    parameters = tuple((a.arg, ast.unparse(a.annotation) if a.annotation else "") for a in arguments)
    signature = f"{node.name}({ast.unparse(node.args)})"
    return Function(
        node.name, signature, summary.rstrip(".") + ".", code, without_doc.strip("\n"), parameters
    )


def snippets() -> list[tuple[list[str], str]]:
    """Read the hand-written functions as (ways to ask, code without the asking)."""
    text = SNIPPETS.read_text()
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            asks = (ast.get_docstring(node) or "").split("|")
            node.body = node.body[1:]
            found.append((asks, ast.unparse(node)))
    return found


def words_of(functions: list[Function]) -> Words:
    """Collect identifiers and short phrases for argument values."""
    identifiers = sorted(
        {
            name
            for f in functions
            for name in (f.name.lstrip("_"), *(p for p, _ in f.parameters))
            if 3 <= len(name) <= 24
        }
    )
    phrases = sorted(
        {
            p
            for f in functions
            for p in [" ".join(f.summary.rstrip(".").split()[:6])]
            if '"' not in p and "\\" not in p
        }
    )
    return Words(identifiers, phrases)


class Sampler:
    """Draws chats of each kind from fixed pools; all randomness comes from one seeded generator."""

    def __init__(self, functions: list[Function], seed: int) -> None:
        self.rng = random.Random(seed)
        self.functions = functions
        self.callable = [f for f in functions if 1 <= len(f.parameters) <= 4 and not f.name.startswith("_")]
        self.words = words_of(functions)
        self.snippets = snippets()

    def tool_call(self) -> Chat:
        """One request that a tool answers, sometimes with its result, a follow-up or a reason in between."""
        rng = self.rng
        make = self._family_call if rng.random() < 0.5 else self._function_call
        tool, arguments, request, result, answer = make()
        name = tool["function"]["name"]
        tools = [tool, *(self._distractor(name) for _ in range(rng.choice((0, 0, 1, 2, 3, 4))))]
        rng.shuffle(tools)
        call: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
        }
        if rng.random() < 0.25:
            call["content"] = rng.choice(PREFACES).format(tool=name)
        if rng.random() < 0.1:
            call["reasoning_content"] = rng.choice(THOUGHTS).format(tool=name)
        messages = [*self._system(), {"role": "user", "content": request}, call]
        if rng.random() < 0.4:
            if rng.random() < 0.1:
                result, answer = rng.choice(ERRORS), "The tool reported an error, so I could not do that."
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
            if rng.random() < 0.3:
                messages += self._exchange(rng.choice(THANKS), rng.choice(THANKS_ANSWERS))
        return Chat(messages, tools)

    def _family_call(
        self, family: ToolFamily | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], str, str, str]:
        rng = self.rng
        family = family or rng.choice(FAMILIES)
        taken: set[str] = set()
        properties, arguments, values = {}, {}, []
        for parameter in family.parameters:
            key = rng.choice([n for n in parameter.names if n not in taken] or list(parameter.names))
            taken.add(key)
            value = parameter.draw(rng, self.words)
            properties[key] = {"type": parameter.type} | (
                {"description": parameter.description} if rng.random() < 0.7 else {}
            )
            arguments[key] = value
            values.append(value)
        required = list(arguments)
        if rng.random() < 0.2:
            properties[rng.choice(("verbose", "timeout", "limit"))] = {
                "type": "integer",
                "description": "Optional",
            }
        facts = {
            "n": rng.randint(1, 40),
            "word": rng.choice(self.words.identifiers),
            "sky": rng.choice(("sunny", "cloudy", "rainy", "windy")),
        }
        tool = function_tool(rng.choice(family.names), family.description, properties, required)
        request = rng.choice(family.requests).format(*values)
        return tool, arguments, request, family.result.format(**facts), family.answer.format(**facts)

    def _function_call(self) -> tuple[dict[str, Any], dict[str, Any], str, str, str]:
        rng = self.rng
        function = rng.choice(self.callable)
        arguments = {key: self._value(key, annotation) for key, annotation in function.parameters}
        types = {
            key: {str: "string", int: "integer", float: "number", bool: "boolean"}[type(value)]
            for key, value in arguments.items()
        }
        tool = function_tool(
            function.name, function.summary, {key: {"type": t} for key, t in types.items()}, list(arguments)
        )
        given = [
            f"{key} {json.dumps(value) if rng.random() < 0.5 else value}" for key, value in arguments.items()
        ]
        listed = given[0] if len(given) == 1 else ", ".join(given[:-1]) + " and " + given[-1]
        request = rng.choice(
            (
                f"Call {function.name} with {listed}.",
                f"Use `{function.name}` with {listed}",
                f"{function.summary} Use {listed}.",
                f"Please run {function.name}: {listed}",
                f"I need {function.name} for {listed}.",
            )
        )
        value = self._value("result", "")
        return tool, arguments, request, json.dumps({"result": value}), f"The result is {value}."

    def _value(self, key: str, annotation: str) -> str | int | float | bool:
        rng = self.rng
        if "bool" in annotation:
            return rng.random() < 0.5
        if "int" in annotation or (not annotation and (len(key) == 1 or rng.random() < 0.2)):
            return rng.randint(0, 999)
        if "float" in annotation or rng.random() < 0.05:
            return round(rng.uniform(0, 100), rng.randint(1, 3))
        return rng.choice((_path, _identifier, _identifier, _phrase))(rng, self.words)

    def _distractor(self, name: str) -> dict[str, Any]:
        tool = (self._family_call() if self.rng.random() < 0.5 else self._function_call())[0]
        return tool if tool["function"]["name"] != name else self._distractor(name)

    def written_code(self) -> Chat:
        """A hand-written function asked for in plain words."""
        rng = self.rng
        asks, code = rng.choice(self.snippets)
        request = rng.choice(CODE_REQUESTS).format(rng.choice(asks))
        answer: Message = {
            "role": "assistant",
            "content": f"{rng.choice(CODE_PREFACES)}```python\n{code}\n```",
        }
        if rng.random() < 0.08:
            request += rng.choice((" Think first.", " Think step by step."))
            answer["reasoning_content"] = f"I need to {asks[0]}. A short function will do."
        return Chat(
            [
                *self._system(),
                {"role": "user", "content": request[0].upper() + request[1:]},
                answer,
                *self._close(),
            ],
            [],
        )

    def documented_code(self) -> Chat:
        """A function of the sources from its docstring, or the docstring from the function."""
        rng = self.rng
        function = rng.choice(self.functions)
        if rng.random() < 0.2:
            request = rng.choice(EXPLAIN_REQUESTS).format(code=function.body_without_doc)
            answer = function.summary
        else:
            request = rng.choice(DOC_REQUESTS).format(
                signature=function.signature, name=function.name, summary=function.summary
            )
            code = function.code if rng.random() < 0.3 else function.body_without_doc
            answer = f"{rng.choice(CODE_PREFACES)}```python\n{code}\n```"
        return Chat([*self._system(), *self._exchange(request, answer), *self._close()], [])

    def talk(self) -> Chat:
        """Greetings, who-are-you, small facts and sums; sometimes with tools that are not needed."""
        rng = self.rng
        messages: list[Message] = self._system()
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            messages += self._exchange(*self._talk_pair())
        tools = [self._distractor("") for _ in range(rng.randint(1, 4))] if rng.random() < 0.2 else []
        return Chat(messages, tools)

    def _talk_pair(self) -> tuple[str, str]:
        rng = self.rng
        topic = rng.choice(TOPICS)
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        sums = (
            (f"{a} + {b}", a + b),
            (f"{a + b} - {b}", a),
            (f"{a} * {b}", a * b),
            (f"{a} plus {b}", a + b),
            (f"{a} times {b}", a * b),
        )
        term, value = rng.choice(sums)
        return rng.choice(
            (
                (rng.choice(GREETINGS), rng.choice(GREETING_ANSWERS)),
                (rng.choice(IDENTITY_QUESTIONS), rng.choice(IDENTITY_ANSWERS)),
                rng.choice(FACTS),
                rng.choice(FACTS),
                (
                    rng.choice(
                        (f"What is {term}?", f"{term} = ?", f"Calculate {term}.", f"how much is {term}")
                    ),
                    rng.choice((f"{term} = {value}", f"{value}", f"It is {value}.")),
                ),
                (rng.choice(OPEN_REQUESTS).format(topic), rng.choice(OPEN_ANSWERS).format(topic)),
            )
        )

    def _system(self) -> list[Message]:
        prompt = self.rng.choice(
            (*SYSTEM_PROMPTS, "", "", "", "", "You are a helpful assistant.", "You are a helpful assistant.")
        )
        return [{"role": "system", "content": prompt}] if prompt else []

    def _close(self) -> list[Message]:
        return (
            self._exchange(self.rng.choice(THANKS), self.rng.choice(THANKS_ANSWERS))
            if self.rng.random() < 0.08
            else []
        )

    @staticmethod
    def _exchange(request: str, answer: str) -> list[Message]:
        return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def iter_samples(functions: list[Function], seed: int, counts: dict[str, int]) -> Iterator[tuple[str, Chat]]:
    """Yield `counts[kind]` chats of each kind: tool_call, written_code, documented_code, talk."""
    sampler = Sampler(functions, seed)
    for kind, count in counts.items():
        draw: Callable[[], Chat] = getattr(sampler, kind)
        for _ in range(count):
            yield kind, draw()


def iter_snippets(seed: int, count: int) -> Iterator[str]:
    """Yield files of a few hand-written functions each, with or without docstrings, in random order."""
    rng = random.Random(seed)
    pool = snippets()
    for _ in range(count):
        parts = []
        for asks, code in rng.sample(pool, rng.randint(1, 6)):
            ask = rng.choice(asks)
            documented = (
                f'    """{ask[0].upper()}{ask[1:]}."""\n' if rng.random() < 0.5 and '"' not in ask else ""
            )
            head, body = code.split("\n", 1)
            parts.append(f"{head}\n{documented}{body}")
        yield "\n\n\n".join(parts) + "\n"
