# SPDX-License-Identifier: MIT
"""What is measured of this machine is plausible; a device that is not there is refused."""

from __future__ import annotations

import pytest
import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.exec import facts


def test_this_machine_has_memory_and_cores() -> None:
    found = facts.measure(torch.device("cpu"))
    assert found.type == "cpu"
    assert 0 < found.memory_available_bytes <= found.memory_total_bytes
    assert 1 <= found.cores <= 4096


def test_auto_takes_what_is_there() -> None:
    assert facts.choose_device("cpu") == torch.device("cpu")
    assert facts.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SetupError, match="--device cpu"):
        facts.choose_device("cuda")


def test_the_null_device_is_none_to_compute_on() -> None:
    with pytest.raises(SetupError, match="computes nothing"):
        facts.choose_device("null")
