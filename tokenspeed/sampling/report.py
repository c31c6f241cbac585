# SPDX-License-Identifier: MIT
"""Log probabilities of chosen tokens, for the requests that ask.

They are those of the model: log-softmax of the raw logits, before penalties, bias, temperature and
truncation, so that they say the same whatever the sampling. `rank` is 1 plus the number of tokens strictly
likelier; `top` lists the likeliest, best first, equals by rising id. Computed on the device at launch, read
at retirement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed.base.sampling import TokenLogprob


@dataclass(frozen=True, slots=True)
class Report:
    """Log probabilities of some of a step's rows; tensors on the host once the step's copies are done."""

    rows_total: int
    rows: NDArray[np.int64]
    """[L] rows of the step that asked."""
    counts: NDArray[np.int64]
    """[L] how many of the likeliest each asked for."""
    numbers: Tensor
    """[L, 3] float64: id, log probability and rank of the chosen token."""
    top_ids: Tensor
    """[L, n] int64"""
    top_logprobs: Tensor
    """[L, n] float32"""

    def read(self) -> list[TokenLogprob | None]:
        """Return one entry for each row of the step, None where nothing was asked."""
        entries: list[TokenLogprob | None] = [None] * self.rows_total
        columns = zip(
            self.rows.tolist(),
            self.counts.tolist(),
            self.numbers.tolist(),
            self.top_ids.tolist(),
            self.top_logprobs.tolist(),
            strict=True,
        )
        for row, count, (token, logprob, rank), ids, logprobs in columns:
            top = list(zip(ids[:count], logprobs[:count], strict=True))
            entries[row] = TokenLogprob(int(token), logprob, top, int(rank))
        return entries


def report(logits: Tensor, tokens: Tensor, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> Report:
    """Start the report of the rows that ask. logits: [S, V] raw, tokens: [S] int32 chosen, negative in faulty rows."""
    places = torch.from_numpy(rows).to(logits.device, non_blocking=True)
    raw = logits[places].float()
    chosen = tokens[places].clamp_min(0).long()[:, None]
    own = raw.gather(1, chosen)
    total = raw.logsumexp(-1, keepdim=True)
    rank = (raw > own).sum(-1, keepdim=True) + 1
    values, ids = _top(raw, int(counts.max()))
    numbers = torch.cat((chosen.double(), (own - total).double(), rank.double()), -1)
    return Report(len(tokens), rows, counts, _to_host(numbers), _to_host(ids), _to_host(values - total))


def _top(raw: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the likeliest values and ids, sorted by id, then stably by value: equals are in order of id."""
    values, ids = raw.topk(count)
    ids, by_id = ids.sort(dim=-1)
    values, by_value = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, by_value)


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
