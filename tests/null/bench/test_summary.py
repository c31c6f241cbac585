# SPDX-License-Identifier: MIT
"""The page of results says what the results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import summary

ROOT = Path(__file__).parents[3]


def test_the_page_is_what_the_results_render_to() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert summary.splice(page, summary.render(ROOT / "benchmarks" / "results")) == page, "run: make bench"


def test_a_block_is_replaced_and_the_rest_kept() -> None:
    once = summary.splice(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n", "new")
    assert once == f"before\n{summary.BEGIN}\nnew\n{summary.END}\nafter\n"
    assert summary.splice(once, "new") == once


def test_a_document_without_a_block_and_a_folder_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no block between"):
        summary.splice("nothing", "new")
    with pytest.raises(SetupError, match=r"cpu-frontend\.json"):
        summary.render(tmp_path)
