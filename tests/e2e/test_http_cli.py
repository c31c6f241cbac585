# SPDX-License-Identifier: MIT
"""`tokenspeed generate` and the mistakes that only a starting engine finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from tokenspeed.engine.source import BUNDLED


def tokenspeed(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenspeed.cli", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def test_generate_answers_stdin_the_same_twice():
    words = ("generate", "--max-tokens", "8", "--temperature", "0", "--max-model-len", "1024")
    first, second = (tokenspeed(*words, stdin="def add(a, b):") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout != ""
    assert "8 new, finish length" in first.stderr or "finish stop" in first.stderr


def test_unsupported_architecture_is_one_clear_line(tmp_path):
    shutil.copy(BUNDLED / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["NoSuchForCausalLM"], "model_type": "no"})
    )
    done = tokenspeed("serve", str(tmp_path), "--port", "0", "--log-level", "error")
    assert done.returncode == 2
    assert "NoSuchForCausalLM is not supported" in done.stderr
    assert "Traceback" not in done.stderr


def test_model_without_a_tokenizer_is_one_clear_line(tmp_path):
    shutil.copy(BUNDLED / "config.json", tmp_path)
    done = tokenspeed("serve", str(tmp_path), "--port", "0", "--log-level", "error")
    assert (done.returncode, "holds no tokenizer" in done.stderr) == (2, True)
    assert len(done.stderr.strip().splitlines()) == 1
