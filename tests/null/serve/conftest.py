# SPDX-License-Identifier: MIT
"""One scripted server for all tests of a run, its script reset for each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import scripted


@pytest.fixture(scope="session")
def _server() -> Iterator[scripted.Serving]:
    with scripted.serving(body_bytes_max=1 << 20) as server:
        yield server


@pytest.fixture
def server(_server: scripted.Serving) -> scripted.Serving:
    engine = _server.engine
    engine.script = scripted.Script()
    engine.healthy = True
    engine.calls.clear()
    engine.aborts.queue.clear()
    return _server


@pytest.fixture(scope="session")
def _client(_server: scripted.Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=_server.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def http(server: scripted.Serving, _client: httpx.Client) -> httpx.Client:
    return _client
