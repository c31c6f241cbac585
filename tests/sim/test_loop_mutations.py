# SPDX-License-Identifier: MIT
"""Bugs planted in the loop and its desk are found by the simulator, each by the law it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tokenspeed.engine.desk import Binding, Desk
from tokenspeed.engine.loop import Loop
from tokenspeed.sim.search import Cut, run_span

SEEDS = 200


def ignore_failed_chunk(desk: Desk, request_id: int, error: str) -> None:
    """A row that failed in the middle of a prompt ends nothing."""


def lose_output(bindings: Callable[..., Iterator[Binding]]) -> Callable[..., Iterator[Binding]]:
    """A resumed request is bound without what it has said."""

    def planted(*args: Any) -> Iterator[Binding]:
        return (binding._replace(output=binding.output[:0]) for binding in bindings(*args))

    return planted


def swap_sampling(bindings: Callable[..., Iterator[Binding]]) -> Callable[..., Iterator[Binding]]:
    """Two requests bound together get each other's sampling."""

    def planted(*args: Any) -> Iterator[Binding]:
        bound = list(bindings(*args))
        for binding, other in zip(bound, reversed(bound), strict=True):
            yield binding._replace(sampling=other.sampling)

    return planted


def swap_tokens(commit: Callable[..., Any]) -> Callable[..., Any]:
    """The tokens of a step are committed in reverse order."""

    def planted(desk: Desk, plan: Any, result: Any, now_us: int) -> Any:
        return commit(desk, plan, replace(result, tokens=result.tokens[::-1].copy()), now_us)

    return planted


def drop_delta(deltas: Callable[..., Any]) -> Callable[..., Any]:
    """The last delta of a large step is lost."""

    def planted(*args: Any) -> Any:
        items = deltas(*args)
        return items[:-1] if len(items) > 3 else items

    return planted


def sleep_after_a_step(retire: Callable[..., Any]) -> Callable[..., Any]:
    """The loop forgets that a retired step may have made room."""

    def planted(loop: Loop, *args: Any) -> None:
        retire(loop, *args)
        loop._quiet = True

    return planted


@pytest.mark.parametrize(
    ("owner", "name", "plant", "laws"),
    [
        (Desk, "_fail", lambda original: ignore_failed_chunk, {"memory", "I8"}),
        (Desk, "bindings", lose_output, {"I7"}),
        (Desk, "bindings", swap_sampling, {"tokens"}),
        (Desk, "commit", swap_tokens, {"tokens"}),
        (Desk, "_deltas", drop_delta, {"tokens", "I8"}),
        (Loop, "_retire", sleep_after_a_step, {"I10"}),
    ],
    ids=["ignore-failed-chunk", "lose-output", "swap-sampling", "swap-tokens", "drop-delta", "sleep"],
)
def test_planted_bug_is_found(
    owner: type, name: str, plant: Callable[..., Any], laws: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, plant(getattr(owner, name)))
    tally = run_span(0, SEEDS, Cut())
    assert tally.failures, f"not found in {SEEDS} seeds"
    assert tally.failures[0].law in laws, tally.failures[0].message
