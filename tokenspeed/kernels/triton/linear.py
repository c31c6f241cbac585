# SPDX-License-Identifier: MIT
"""`linear.dense` and `linear.heads`: few tokens stream the weight (`stream.py`), many take the vendor's product.

In: weights once, activations every step (last dimension dense, the others at any stride). Out: new tensors or
`out`. Dense weights stay as they come, rounded to int8 where the format says so; those of heads are transposed
to [H, B, A]. How a product is cut depends on its sizes alone (`tiling`), so that equal calls give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import AtLeast, Needs, Traits
from tokenspeed.kernels.ref.dense import quantise_fp8_block, quantise_int8, restored
from tokenspeed.kernels.spec import Band, Implementation, Kernel, Plain
from tokenspeed.kernels.triton.launch import power_of_2
from tokenspeed.kernels.triton.stream import FEW, TOKENS_MAX, Tiling, Weight, multiply

FEW_ELEMENTS = 8192
"""Of a weight, that a block of four warps holds in registers: 16 KiB in flight."""
FEW_DEPTH_MAX = 2 * FEW_ELEMENTS
SMALL_ELEMENTS = 1 << 20
"""Weights up to this size are read by `few` for 3 and 4 tokens too; larger ones want the matrix unit by then
([2048, 2048] at 4 tokens: 4.5 us, 3.6 with it)."""
STREAMED_TOKENS = 16
"""More tokens than this take the vendor's product, unless the weight is quantised or deep."""
DEEP = 8192
"""Input channels from which streaming beats the vendor's product at 64 tokens too."""
HEADS_ROWS = 16
HEADS_DEPTHS = (256, 512)
"""Per-head products of so many input channels are not cut along them: 4.1 and 3.8 us at 32 and 64 rows, where shares of
128 channels that are added up afterwards take 6.3 and 7.5 (docs/log/0010)."""
DEPTH_MAX = 512
BLOCK_DEPTH = 128


def tiling(
    outputs: int, inputs: int, groups: int, tokens: int, cores: int, depth_max: int = DEPTH_MAX
) -> Tiling:
    """Cut `groups` products [outputs, inputs] x [inputs, tokens] for a device of so many cores."""
    if takes_few(groups * outputs * inputs, inputs, tokens):
        depth = power_of_2(inputs)
        if depth > FEW_ELEMENTS:
            return Tiling(2, warps=8)
        rows = FEW_ELEMENTS // depth
        while rows > 1 and groups * outputs < 2 * cores * rows:
            rows //= 2
        return Tiling(rows)
    rows, depth = 64, max(16, min(BLOCK_DEPTH, power_of_2(inputs)))
    blocks = groups * -(-outputs // rows)
    at_once = depth_max if tokens <= STREAMED_TOKENS else min(depth_max, 256)
    while at_once >= depth:  # all blocks on the device at once, a step each
        launched = blocks * (inputs // at_once)
        if inputs % at_once == 0 and 3 * cores <= 4 * launched <= 8 * cores:
            return Tiling(rows, at_once, inputs // at_once, warps=4 if launched <= cores else 8)
        at_once //= 2
    parts = 1
    while 3 * blocks * parts < 2 * cores and 2 * parts * depth <= inputs:
        parts *= 2
    return Tiling(rows, depth, parts, stages=4)


def heads_tiling(outputs: int, inputs: int, heads: int, tokens: int, cores: int) -> Tiling:
    """Cut the products of `heads` heads: blocks that have a row's whole depth, where there are enough of them."""
    if tokens > FEW // 2 and inputs in HEADS_DEPTHS and 4 * heads * outputs >= 3 * cores * HEADS_ROWS:
        return Tiling(HEADS_ROWS, inputs)
    return tiling(outputs, inputs, heads, tokens, cores)


def takes_few(elements: int, inputs: int, tokens: int) -> bool:
    """Say whether so many tokens go without the matrix unit."""
    if inputs > FEW_ELEMENTS:
        return tokens == 1 and inputs <= FEW_DEPTH_MAX
    return tokens <= (FEW if elements <= SMALL_ELEMENTS else FEW // 2)


class Dense:
    """x W^T + b for one weight's traits: cut as it was when the layer was built, by the number of tokens."""

    __slots__ = ("_dtype", "_format", "_tilings")

    def __init__(self, traits: Traits, device: Device) -> None:
        outputs, inputs = traits["out_dim"], traits["in_dim"]
        assert isinstance(outputs, int)
        assert isinstance(inputs, int)
        self._format, self._dtype = str(traits["format"]), torch.float32 if traits["float32_out"] else None
        depth_max = BLOCK_DEPTH if self._format == "fp8_block" else DEPTH_MAX
        self._tilings = by_tokens(
            lambda tokens: tiling(outputs, inputs, 1, tokens, device.cores, depth_max),
            TOKENS_MAX if self._format != "native" or inputs >= DEEP else STREAMED_TOKENS,
        )

    def prepare(self, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Weight:
        """Keep the weight [O, I], its bias and its scales; round it where the format is int8."""
        if self._format == "int8":
            weight, scale = quantise_int8(weight)
        if self._format == "fp8_block" and scale is None:
            weight, scale = quantise_fp8_block(weight)
        return Weight(weight.contiguous()[None], scale, bias, self._format)

    def __call__(self, x: Tensor, w: Weight, *, out: Tensor | None = None) -> Tensor:
        """Return x W^T + b."""
        tokens = x.shape[0]
        y = x.new_empty((tokens, w.matrices.shape[1]), dtype=self._dtype) if out is None else out
        if tokens < len(self._tilings):
            multiply(x[:, None], w, y[:, None], self._tilings[tokens])
            return y
        weight = w.matrices[0]
        if w.scale is not None and self._format == "int8":  # whole numbers are exact in any dtype
            wide = y if y.dtype is torch.float32 else y.new_empty(y.shape, dtype=torch.float32)
            _product(x, weight.to(x.dtype).T, None, wide).mul_(w.scale[:, 0])
            return y.copy_(wide if w.bias is None else wide.add_(w.bias))
        if w.scale is not None:
            weight = restored(weight, w.scale, x.dtype)
        return _product(x, weight.T, w.bias, y)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Write x W + b into y, which may be wider than x."""
    if y.dtype is x.dtype:
        return torch.mm(x, weight, out=y) if bias is None else torch.addmm(bias, x, weight, out=y)
    if x.is_cuda:
        torch.mm(x, weight, out_dtype=y.dtype, out=y)
    else:  # under the interpreter
        torch.mm(x.to(y.dtype), weight.to(y.dtype), out=y)
    return y if bias is None else y.add_(bias)


class Heads:
    """Each head's vector times that head's own matrix."""

    __slots__ = ("_tilings",)

    def __init__(self, traits: Traits, device: Device) -> None:
        heads, inputs, outputs = (traits[name] for name in ("heads", "in_dim", "out_dim"))
        assert isinstance(heads, int)
        assert isinstance(inputs, int)
        assert isinstance(outputs, int)
        self._tilings = by_tokens(lambda tokens: heads_tiling(outputs, inputs, heads, tokens, device.cores))

    def prepare(self, weight: Tensor) -> Weight:
        """Keep the weight [H, A, B] as [H, B, A]."""
        return Weight(weight.transpose(1, 2).contiguous())

    def __call__(self, x: Tensor, w: Weight, *, out: Tensor | None = None) -> Tensor:
        """Return x [R, H, A] W -> [R, H, B]."""
        rows = x.shape[0]
        y = x.new_empty((rows, *w.matrices.shape[:2])) if out is None else out
        if rows < len(self._tilings):
            return multiply(x, w, y, self._tilings[rows])
        torch.bmm(x.transpose(0, 1), w.matrices.transpose(1, 2), out=y.transpose(0, 1))
        return y


def by_tokens(cut: Callable[[int], Tiling], most: int = TOKENS_MAX) -> tuple[Tiling, ...]:
    """The tiling for each number of tokens up to `most`, the same for all that run as one power of two."""
    return tuple(cut(tokens if tokens <= FEW else power_of_2(tokens)) for tokens in range(most + 1))


def build_dense(traits: Traits, device: Device) -> Implementation:
    """Build `linear.dense`."""
    dense = Dense(traits, device)
    return Implementation(dense, dense.prepare)


def build_heads(traits: Traits, device: Device) -> Implementation:
    """Build `linear.heads`."""
    heads = Heads(traits, device)
    return Implementation(heads, heads.prepare)


@dataclass(frozen=True, slots=True)
class Transposed:
    """A weight [I, O] and its bias [O]."""

    weight: Tensor
    bias: Tensor | None


def vendor_prepare(weight: Tensor, bias: Tensor | None = None) -> Transposed:
    """Keep the weight [O, I] and its bias [O]."""
    return Transposed(weight.contiguous().T, bias)


def vendor_dense(x: Tensor, w: Transposed, *, float32_out: bool, out: Tensor | None = None) -> Tensor:
    """Return x W^T + b by the vendor's library."""
    dtype = torch.float32 if float32_out else x.dtype
    y = x.new_empty((x.shape[0], w.weight.shape[1]), dtype=dtype) if out is None else out
    return _product(x, w.weight, w.bias, y)


_FLOATS = {torch.bfloat16, torch.float16, torch.float32}
_DENSE = Needs(sm=AtLeast((8, 0)), dtype=_FLOATS, format={"native", "int8"})
_SCALED = Needs(sm=AtLeast((8, 9)), dtype=_FLOATS, format="fp8_block")
_VENDOR = Needs(sm=AtLeast((8, 0)), dtype=_FLOATS, format="native")

KERNELS = (
    Kernel("linear.dense", "triton", _DENSE, Band.FAST, build_dense),
    Kernel("linear.dense", "triton_fp8", _SCALED, Band.FAST, build_dense),
    Kernel("linear.heads", "triton", Needs(sm=AtLeast((8, 0)), dtype=_FLOATS), Band.FAST, build_heads),
    Kernel(
        "linear.dense",
        "cublas",
        _VENDOR,
        Band.GENERIC,
        Plain(vendor_dense, vendor_prepare, call_traits=("float32_out",)),
    ),
)
