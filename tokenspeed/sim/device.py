# SPDX-License-Identifier: MIT
"""How long a step takes on a device, as a formula with stated prices, and how reality strays from it.

In: the shape of a step (`Step`). Out: microseconds. A formula is fitted to measurements that its provenance
names; it is exact in a simulation unless `Noise` is asked for. Knows no scheduler and no plan.

    base + expert * (experts that the tokens touch - those of one token) + token * new prompt tokens
         + context * KV entries that decode rows read + pair * (new prompt tokens x context they attend to)
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True, slots=True)
class Step:
    """What a step computes: decode rows and the KV they read, prompt tokens and the pairs they attend to."""

    decode_rows: int
    decode_context: int
    prefill_tokens: int
    prefill_pairs: int


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """Prices of a model's step on a device, in microseconds."""

    name: str
    provenance: str
    base_us: float
    expert_us: float
    experts: int
    experts_per_token: int
    token_us: float
    context_us: float
    pair_us: float
    host_us: float  # of the loop per step; hidden behind the device with overlap
    kv_token_bytes: int
    kv_bytes: int  # what the device has left for KV
    copy_us: float  # of one token's KV between device and host

    def step_us(self, step: Step) -> int:
        """The exact duration of a step."""
        idle_share = (1 - self.experts_per_token / self.experts) ** (step.decode_rows + step.prefill_tokens)
        touched = self.experts * (1 - idle_share) - self.experts_per_token
        return round(
            self.base_us
            + self.expert_us * max(0.0, touched)
            + self.token_us * step.prefill_tokens
            + self.context_us * step.decode_context
            + self.pair_us * step.prefill_pairs
        )

    def alone_us(self, input_tokens: int, new_tokens: int, output_tokens: int) -> int:
        """A turn that has the device to itself and finds all it has said before in KV."""
        pairs = new_tokens * (input_tokens - new_tokens // 2)
        prefill = self.step_us(Step(0, 0, new_tokens, pairs))
        decode = self.step_us(Step(1, input_tokens + output_tokens // 2, 0, 0))
        return prefill + decode * (output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Noise:
    """A step takes up to `share` more or less than the formula says, and `late_share` of them `late` times."""

    share: float = 0.0
    late_share: float = 0.0
    late: float = 3.0

    def apply(self, exact_us: int, random: Random) -> int:
        if self.share == 0.0 and self.late_share == 0.0:
            return exact_us
        factor = 1.0 + self.share * (2.0 * random.random() - 1.0)
        if random.random() < self.late_share:
            factor *= self.late
        return max(1, round(exact_us * factor))


NOISES: Final = {"exact": Noise(), "noisy": Noise(share=0.15, late_share=0.01)}

_MOONLIGHT_H200: Final = DeviceModel(
    name="moonlight-16b-a3b on h200",
    provenance=(
        "parts measured, sum modelled: step of 1 x 2k and prefill of 8k and 51k from "
        "benchmarks/results/h200-decode-grid.json, KV reads from h200-mla-decode.json (16 x 64k, 27 layers), "
        "experts from h200-moe.json (26 layers)"
    ),
    base_us=2_500.0,
    expert_us=100.0,
    experts=64,
    experts_per_token=6,
    token_us=7.9,
    context_us=0.0101,
    pair_us=0.00046,
    host_us=300.0,
    kv_token_bytes=27 * 576 * 2,
    kv_bytes=98_000_000_000,
    copy_us=27 * 576 * 2 / 50_000,  # 50 GB/s over PCIe 5 x16
)

DEVICES: Final[dict[tuple[str, str], DeviceModel]] = {("moonlight", "h200"): _MOONLIGHT_H200}
"""By names of model and device."""
