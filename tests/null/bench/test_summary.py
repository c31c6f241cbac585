# SPDX-License-Identifier: MIT
"""The page of results says what the results say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import summary
from tokenspeed.bench.provenance import Machine

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
    with pytest.raises(SetupError, match=r"cpu\.json"):
        summary.render(tmp_path)


def test_a_run_says_how_long_it_took_and_how_quiet_it_was() -> None:
    whole = summary.Whole(
        "abc", Machine("a CPU", 2, 24.0, "Linux", "3.11"), "2026-01-01", 123.4, 0.25, ("x.json",)
    )
    assert summary.said(whole) == "123 s in all; other work had 25% of the cores meanwhile; failed: x.json"
    assert summary.said(replace(whole, others_share=None, failed=())) == "123 s in all"
