# SPDX-License-Identifier: MIT
"""The log: a library's records look like the project's own, once."""

from __future__ import annotations

import logging

import pytest

from tokenspeed.base import log


def test_an_adopted_library_prints_in_the_project_s_format_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.adopt("some_library")
    log.adopt("some_library")
    logging.getLogger("some_library.part").warning("heard %d", 7)
    printed = capsys.readouterr().err
    assert printed.count("heard 7") == 1
    assert " W some_library.part: heard 7" in printed
