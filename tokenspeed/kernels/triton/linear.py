# SPDX-License-Identifier: MIT
"""`linear.dense` and `linear.heads` on the vendor's matrix library.

In: weights once, activations every step (last dimension dense, the others at any stride). Out: new tensors or
`out`. Weights stay as the checkpoint has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.needs import AtLeast, Needs
from tokenspeed.kernels.spec import Band, Kernel, Plain


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight [O, I] as it is multiplied, transposed, and its bias [O]."""

    transposed: Tensor
    bias: Tensor | None


def dense_prepare(weight: Tensor, bias: Tensor | None = None) -> Weight:
    """Keep the weight [O, I] and its bias [O]."""
    return Weight(weight.contiguous().T, bias)


def dense(x: Tensor, w: Weight, *, out: Tensor | None = None) -> Tensor:
    """Return x W^T + b."""
    y = x.new_empty((x.shape[0], w.transposed.shape[1])) if out is None else out
    if w.bias is None:
        return torch.mm(x, w.transposed, out=y)
    return torch.addmm(w.bias, x, w.transposed, out=y)


def heads_prepare(weight: Tensor) -> Tensor:
    """Keep the weight [H, A, B]."""
    return weight.contiguous()


def heads(x: Tensor, w: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply every head's vector of x [R, H, A] by that head's own matrix."""
    y = x.new_empty((x.shape[0], w.shape[0], w.shape[2])) if out is None else out
    torch.bmm(x.transpose(0, 1), w, out=y.transpose(0, 1))
    return y


_NEEDS = Needs(sm=AtLeast((8, 0)))

KERNELS = (
    Kernel(
        "linear.dense",
        "cublas",
        Needs(sm=AtLeast((8, 0)), format="native"),
        Band.GENERIC,
        Plain(dense, dense_prepare),
    ),
    Kernel("linear.heads", "cublas", _NEEDS, Band.GENERIC, Plain(heads, heads_prepare)),
)
