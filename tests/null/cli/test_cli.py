# SPDX-License-Identifier: MIT
"""The command line: help that is golden, flags that are the configuration's, mistakes of one line and exit
code 2.

`python tests/null/cli/test_cli.py` writes the golden files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tokenspeed.base import config
from tokenspeed.cli import generate, main, serve

GOLDEN = Path(__file__).parent / "golden"
HELP = {
    "tokenspeed": main.usage,
    "serve": lambda: serve.parser().format_help(),
    "generate": lambda: generate.parser().format_help(),
}


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main.main(words)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", HELP)
def test_help_is_golden(name):
    assert HELP[name]().rstrip() + "\n" == (GOLDEN / f"{name}.txt").read_text(), (
        f"run: python {Path(__file__).name}"
    )


def test_every_option_has_a_flag_that_sets_it():
    for option in config.options():
        number = str(int(option.high or option.low or 7))
        sample = {bool: [], int: [number], float: [number], str: ["x"]}[option.type]
        words = [option.choices[-1]] if option.choices else sample
        given = serve.parse([*([option.flag] if option.flag else []), *words])
        value = getattr(getattr(given, option.branch), option.name)
        wanted = True if option.type is bool else option.type(words[0])
        assert value == ((wanted,) if option.repeated else wanted), option.name


def test_flags_can_be_turned_off_and_sizes_abbreviated():
    given = serve.parse(["--no-prefix-cache", "--kv-cache-bytes", "2GiB", "--body-bytes-max", "64k"])
    assert given.cache.prefix_cache is False
    assert given.cache.kv_cache_bytes == 2 << 30
    assert given.server.body_bytes_max == 64 << 10


def test_key_comes_from_the_environment_unless_given(monkeypatch):
    monkeypatch.setenv("TOKENSPEED_API_KEY", "from-env")
    assert serve.parse([]).server.api_key == "from-env"
    assert serve.parse(["--api-key", "given"]).server.api_key == "given"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "no command 'frobnicate'"),
        (["serve", "--port", "many"], "'many' is not a whole number"),
        (["serve", "--port", "99999"], "0..65535"),
        (["serve", "--block-tok", "16"], "--block-tok"),
        (["serve", "--dtype", "int4"], "bfloat16"),
        (["serve", "--host", "0.0.0.0"], "--insecure"),
        (["serve", "/no/such/model"], "/no/such/model"),
        (["serve", __file__], "is a file"),
        (["generate", "--prompt", ""], "prompt is empty"),
        (["generate", "--prompt", "x", "--max-tokens", "0"], "at least 1"),
        (["bench", "nothing"], "no benchmark 'nothing'"),
        (["generate", "write a poem"], "no directory here"),
        (["explain", "no.such_op"], "no.such_op"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, said, capsys):
    code, _, err = run(*words, capsys=capsys)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_misspelt_variable_is_a_mistake(monkeypatch, capsys):
    monkeypatch.setenv("TOKENSPEED_API_KAY", "x")
    code, _, err = run("env", capsys=capsys)
    assert (code, "did you mean TOKENSPEED_API_KEY" in err) == (2, True)


def test_no_far_variable_is_suggested(monkeypatch, capsys):
    monkeypatch.setenv("TOKENSPEED_FOO", "x")
    assert "known: TOKENSPEED_API_KEY" in run("env", capsys=capsys)[2]


def test_log_level_of_the_environment_is_checked(monkeypatch, capsys):
    monkeypatch.setenv("TOKENSPEED_LOG_LEVEL", "chatty")
    code, _, err = run("env", capsys=capsys)
    assert (code, "debug, info, warning, error" in err) == (2, True)


def test_explain_takes_the_device_asked_for(monkeypatch, capsys):
    assert "7 cores" in run("explain", "norm.rms", "--device", "cpu", "--threads", "7", capsys=capsys)[1]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = run("explain", "norm.rms", "--device", "cuda", capsys=capsys)
    assert (code, "no GPU here" in err) == (2, True)


def test_version_and_usage(capsys):
    assert run("--version", capsys=capsys)[1].startswith("tokenspeed ")
    assert run("--help", capsys=capsys) == (0, main.usage() + "\n", "")
    assert run(capsys=capsys)[0] == 2


def test_env_shows_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("TOKENSPEED_API_KEY", "sesame")
    code, out, _ = run("env", capsys=capsys)
    assert code == 0
    assert "torch" in out
    assert "sesame" not in out


def test_explain_lists_ops_and_explains_one(capsys):
    assert "attention.mla_decode" in run("explain", capsys=capsys)[1]
    assert "chosen" in run("explain", "norm.rms", capsys=capsys)[1]


def test_server_process_loads_no_torch():
    heavy = "{'torch', 'transformers', 'pydantic'}"
    code = f"import sys, tokenspeed.cli.serve; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    for name, text in HELP.items():
        (GOLDEN / f"{name}.txt").write_text(text().rstrip() + "\n")
