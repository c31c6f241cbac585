# SPDX-License-Identifier: MIT
"""The agentic benchmark against the whole engine: the bundled model passes every check over HTTP."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tokenspeed.bench import record
from tokenspeed.bench.agentic import main
from tokenspeed.bench.report import main as report
from tokenspeed.bench.scores import by_load


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    serve = ("serve", "--port", "0", "--max-model-len", "4096", "--allow-forced-output")
    command = [sys.executable, "-m", "tokenspeed.cli", *serve]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = None
        for line in process.stderr:
            found = found or re.search(r" at (http://\S+)", line)
            if "OPENAI_BASE_URL" in line:
                break
        assert found, "the server ended"
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with httpx.Client(transport=httpx.HTTPTransport(retries=6)) as client:
            assert client.get(f"{found[1]}/ready").status_code == 200
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("words", [("h0",), ("h1a",), ("h2", "--rates", "4", "--conversations", "6")])
def test_bundled_model_passes_every_check(words: tuple[str, ...], url: str, tmp_path: Path):
    out = tmp_path / "result.json"
    small = [
        "--scale",
        "0.02",
        "--turns-max",
        "3",
        "--concurrency",
        "2",
    ]
    status = main(["--url", url, "--workload", *words, *small, "--out", str(out)])
    result = record.read(out)
    checks = [check for repeats in by_load(result).values() for each in repeats for check in each.checks]
    assert [check for check in checks if not check.passed] == []
    assert (status, result.answers) == (0, "forced" if words[0] == "h1a" else "real")
    assert report([str(out), "--html", str(tmp_path / "page.html")]) == 0


def test_chat_is_measured_in_the_counts_of_the_server(url: str, tmp_path: Path):
    out = tmp_path / "result.json"
    small = [
        "--scale",
        "0.01",
        "--turns-max",
        "3",
        "--concurrency",
        "1",
        "--conversations",
        "2",
    ]
    main(["--url", url, "--api", "chat", *small, "--out", str(out)])
    result = record.read(out)
    rows = [row for level in result.levels for row in level.rows]
    assert not [row.error for row in rows if row.error]
    assert all(row.output_tokens == row.asked_tokens and row.prompt_tokens > 100 for row in rows)
    assert any(row.cached_tokens for row in rows if row.turn)
