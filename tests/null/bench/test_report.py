# SPDX-License-Identifier: MIT
"""The report shows every run, calls an invalid level invalid, and is whole without a network."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import record, svg
from tokenspeed.bench.plot import WIDTH, Axis, Plot, Point, Series, number
from tokenspeed.bench.record import Level, Result, Row
from tokenspeed.bench.report import figures, main, page


def level(load: float, gap_us: int, cached: int = 900) -> Level:
    rows = [
        Row(
            conversation=f"<session {index}>",
            turn=turn,
            asked_tokens=5,
            sent_us=turn * 1_000_000,
            end_us=turn * 1_000_000 + 500_000,
            first_us=turn * 1_000_000 + 100_000,
            gaps_us=(gap_us,) * 4,
            event_tokens=(1,) * 5,
            prompt_tokens=1000,
            output_tokens=5,
            cached_tokens=cached * turn,
            sent_tokens=1000,
            implied_least=900 * turn,
            implied_most=900 * turn,
        )
        for index in range(int(load))
        for turn in (0, 1)
    ]
    return Level(load, 0, tuple(rows))


def result(name: str, *levels: Level) -> Result:
    return Result(name, "h0", "c0ffee", "2026-01-01", 0, "none", 1, {"scale": 1}, {}, "real", levels)


FAST = result("fast & new", level(1, 5_000), level(2, 8_000))
LEAKY = result("leaky", level(1, 6_000, cached=999))


def test_page_is_whole_and_holds_every_run():
    text = page([FAST, LEAKY])
    assert "fast &amp; new" in text
    assert "<session" not in text
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    assert "leaky: levels 1 are invalid" in text
    assert "99.9% where the prompts imply" not in text  # half of the prompts are first turns
    assert "conversations were not fresh" in text


def test_every_row_of_a_table_has_a_cell_for_each_head():
    for table in re.findall(r"<table>.*?</table>", page([FAST, LEAKY])):
        rows = re.findall(r"<tr>.*?</tr>", table)
        assert len({len(re.findall(r"<t[hd]>", row)) for row in rows}) == 1


def test_plots_are_xml_with_one_figure_for_each_question_and_a_timeline_for_each_run():
    drawn = figures([FAST, LEAKY])
    names = ["pareto", "ttft", "inter-token", "ttft-first", "timeline-0", "timeline-1"]
    assert [figure.name for figure in drawn] == names
    for figure in drawn:
        for alone in (False, True):
            ElementTree.fromstring(figure.svg(alone=alone))


def test_frontier_draws_valid_levels_filled_and_invalid_ones_hollow():
    pareto = figures([FAST, LEAKY])[0].svg(alone=False)
    assert pareto.count('<circle class="s0"') == 2
    assert pareto.count('<circle class="hollow s1"') == 1
    # 4 gaps of 5 ms: 200 tokens/s; 10 tokens in 1.5 s: 400 a minute.
    assert "load 1: 200 tps/user, 400 TPM" in pareto


def test_invalid_level_does_not_set_the_scale_of_the_frontier():
    false = replace(level(1, 10, cached=999), load=1)
    pareto = figures([FAST, result("false", false)])[0].plot
    assert pareto.x.high == 200


def test_occupancy_is_drawn_for_servers_that_say_it():
    full = replace(FAST, levels=(replace(FAST.levels[1], occupancy=((-5, 0.1), (0, 0.5), (10**6, 0.75))),))
    assert [figure.name for figure in figures([FAST, full])][4] == "occupancy"
    assert "occupancy" not in [figure.name for figure in figures([FAST])]


def test_failed_requests_are_drawn_as_failed():
    refused = Row("a", 0, 5, sent_us=0, end_us=700_000, error="HTTP 429: full")
    one = result("refusing", Level(1, 0, (*level(1, 5_000).rows, refused)))
    timeline = figures([one])[-1].svg(alone=False)
    assert 'class="failed"' in timeline
    assert "HTTP 429: full" in timeline
    assert figures([result("all refused", Level(1, 0, (refused,)))])  # nothing answered still draws


def test_runs_that_are_not_alike_are_called_so():
    assert "The runs differ in seed: 0, 1." in page([FAST, replace(FAST, seed=1)])
    assert "The runs differ" not in page([FAST, FAST])
    assert "no claim rests" not in page(
        [result("thrice", *[replace(level(1, 5_000), repeat=r) for r in range(3)])]
    )


def test_command_writes_page_and_plots_and_fails_for_an_invalid_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, each in (("a.json", FAST), ("b.json", LEAKY)):
        record.write(each, tmp_path / name)
    words = ["--html", str(tmp_path / "page.html"), "--svg", str(tmp_path / "plots")]
    assert main([str(tmp_path / "a.json")]) == 0
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), *words]) == 1
    assert "INVALID 1 (1): reuse" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text() == page([FAST, LEAKY])
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 6


def test_axes_hold_their_values_with_round_ticks():
    assert Axis.over("x", [3, 17]).ticks() == [0, 5, 10, 15, 20]
    assert Axis.over("x", [0.02, 7], log=True).ticks() == pytest.approx([0.01, 0.1, 1, 10])
    assert Axis.over("x", [], log=True).high > Axis.over("x", [], log=True).low
    assert Axis.over("x", [0.0]).high > 0
    plot = Plot(Axis("x", 0, 10), Axis("y", 0, 10))
    assert (plot.x.share(0), plot.x.share(10), plot.x.share(99)) == (0, 1, 1)
    assert (plot.x.within(-1), plot.x.within(3), plot.x.within(99)) == (0, 3, 10)
    plot.series.append(Series("one", [Point(1, 1)]))
    ElementTree.fromstring(svg.render(plot, "alone", alone=True))


def test_images_are_of_every_plot_and_twice_its_size(tmp_path: Path):
    record.write(FAST, tmp_path / "a.json")
    assert main([str(tmp_path / "a.json"), "--png", str(tmp_path / "images")]) == 0
    images = {path.stem: path.read_bytes() for path in (tmp_path / "images").glob("*.png")}
    assert images.keys() == {figure.name for figure in figures([FAST])}
    assert {data[:8] for data in images.values()} == {b"\x89PNG\r\n\x1a\n"}
    assert int.from_bytes(images["pareto"][16:20]) == 2 * WIDTH


def test_images_without_the_extra_are_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "tokenspeed.bench.png", raising=False)
    monkeypatch.delattr("tokenspeed.bench.png", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    record.write(FAST, tmp_path / "a.json")
    with pytest.raises(SetupError, match=r"pip install 'tokenspeed\[plots\]'"):
        main([str(tmp_path / "a.json"), "--png", str(tmp_path)])


def test_numbers_are_short():
    assert [number(each) for each in (0, 0.125, 99.96, 1234, 5.6e6, 7e9)] == [
        "0",
        "0.125",
        "100",
        "1.23k",
        "5.6M",
        "7G",
    ]
