# SPDX-License-Identifier: MIT
"""Compiled moves do over gloo, between processes, what they do between threads."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tokenspeed.dist import Mesh
from tokenspeed.dist.groups import ProcessGroups

RANKS = 2


def moves(rank: int, port: int, tp: int) -> None:
    store = dist.TCPStore("127.0.0.1", port, RANKS, rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    axis = "tp" if tp == RANKS else "dp"
    groups = ProcessGroups(Mesh(tp=tp, dp=RANKS // tp, rank=rank))
    mine = torch.arange(16.0).view(4, 4) + 100 * rank
    both = [torch.arange(16.0).view(4, 4), torch.arange(16.0).view(4, 4) + 100]
    want = {
        ("all_reduce", 0): both[0] + both[1],
        ("reduce_scatter", 0): (both[0] + both[1])[2 * rank : 2 * rank + 2],
        ("reduce_scatter", 1): (both[0] + both[1])[:, 2 * rank : 2 * rank + 2],
        ("all_gather", 0): torch.cat(both, 0),
        ("all_gather", 1): torch.cat(both, 1),
        ("slice", 1): mine[:, 2 * rank : 2 * rank + 2],
        ("all_to_all", 1): torch.cat(both, 0)[:, 2 * rank : 2 * rank + 2],
        ("all_to_all", 0): torch.cat(both, 1)[2 * rank : 2 * rank + 2],
    }
    for (kind, dim), expected in want.items():
        kept = mine.clone()
        assert torch.equal(groups.move(kind, mine, axis=axis, dim=dim), expected), (kind, dim)
        assert torch.equal(mine, kept), kind
    dist.destroy_process_group()


@pytest.mark.parametrize("tp", [1, 2])
def test_gloo_moves_as_declared(tp: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, not spawned: a child that imports torch anew costs seconds.
    mp.start_processes(moves, (port, tp), nprocs=RANKS, start_method="fork")
