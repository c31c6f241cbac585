# SPDX-License-Identifier: MIT
import threading

import pytest
import torch

from tokenspeed.kernels.cpu import linear, threads


def test_results_do_not_depend_on_the_number_of_threads():
    packed = linear.dense_prepare(torch.randn(500, 64))
    x = torch.randn(30, 64)
    results = []
    for count in (1, 2, 5):
        threads.set_threads(count)
        results.append(linear.dense(x, packed))
    threads.set_threads(2)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_parked_workers_wake_and_python_threads_take_turns():
    threads.set_threads(3, spin_us=0)
    packed = linear.dense_prepare(torch.randn(256, 32))
    x = torch.randn(4, 32)
    wanted = linear.dense(x, packed)
    wrong: list[int] = []

    def call() -> None:
        wrong.extend(i for i in range(200) if not torch.equal(linear.dense(x, packed), wanted))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    threads.set_threads(2)
    assert not wrong


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="no instruction set"):
        threads.set_isa("mmx")
    with pytest.raises(ValueError, match="at least 1"):
        threads.set_threads(0)
