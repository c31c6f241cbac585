# SPDX-License-Identifier: MIT
"""Results stay readable while the next step lands, and memory is used in turn."""

from __future__ import annotations

import torch

from tokenspeed.exec.landing import IN_FLIGHT_MAX, Landings


def test_a_landing_outlives_the_next_and_no_longer() -> None:
    landings = Landings(4, 8, torch.device("cpu"))
    first, finite, event = landings.land(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([True, False]))
    second, none, _ = landings.land(torch.tensor([3], dtype=torch.int32), None)
    assert (first.tolist(), second.tolist()) == ([1, 2], [3])
    assert finite is not None
    assert finite.tolist() == [True, False]
    assert none is None
    assert event is None  # a CPU has copied when it returns
    third, _, _ = landings.land(torch.tensor([4, 5], dtype=torch.int32), None)
    assert third.data_ptr() == first.data_ptr()
    assert IN_FLIGHT_MAX == 2


def test_what_lands_is_a_copy() -> None:
    chosen = torch.tensor([7], dtype=torch.int32)
    landed, _, _ = Landings(1, 1, torch.device("cpu")).land(chosen, None)
    chosen[0] = 8
    assert landed.tolist() == [7]
