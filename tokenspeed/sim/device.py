# SPDX-License-Identifier: MIT
"""How long a step takes on a device, as a formula with stated prices, and how reality strays from it.

In: the shape of a step (`Step`). Out: microseconds. A formula is fitted to measurements that its provenance
names; it is exact in a simulation unless `Noise` is asked for. Knows no scheduler and no plan.

    base + row * decode rows + context * KV entries they read + token * new prompt tokens
         + pair * (new prompt token, token it attends to) pairs
         + expert * (experts that the tokens touch - those of one token)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Final

from tokenspeed.base.errors import SetupError


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
    row_us: float
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
    sync_us: float  # of a step on more than one rank: its collectives
    weight_bytes: int
    ranks: int = 1

    def step_us(self, step: Step) -> int:
        """The exact duration of a step."""
        idle_share = (1 - self.experts_per_token / self.experts) ** (step.decode_rows + step.prefill_tokens)
        touched = self.experts * (1 - idle_share) - self.experts_per_token
        return round(
            self.base_us
            + self.row_us * step.decode_rows
            + self.expert_us * max(0.0, touched)
            + self.token_us * step.prefill_tokens
            + self.context_us * step.decode_context
            + self.pair_us * step.prefill_pairs
        )

    @property
    def prices(self) -> tuple[float, float, float, float, float]:
        """The linear part, as `SchedulerOptions.cost` takes it."""
        return self.base_us, self.row_us, self.context_us, self.token_us, self.pair_us

    def on_mesh(self, mesh: str) -> DeviceModel:
        """The same on several devices, `tpN`: an estimate, nobody has measured it.

        Weights are read and multiplied in N parts, collectives come on top, and what the weights leave on each
        device holds KV. A latent (MLA) is the same for all heads, so every rank keeps and reads all of it: the price
        of context stays, and so does the KV of a token.
        """
        ranks = int(mesh[2:]) if mesh[:2] == "tp" and mesh[2:].isdigit() else 0
        if ranks not in (1, 2, 4, 8):
            raise SetupError(f"--mesh {mesh}: there are tp1, tp2, tp4 and tp8")
        if ranks == 1:
            return self
        return replace(
            self,
            name=f"{self.name}, {mesh}",
            provenance=f"{self.provenance}; {mesh} estimated",
            base_us=self.base_us / ranks + self.sync_us,
            row_us=self.row_us / ranks,
            expert_us=self.expert_us / ranks,
            token_us=self.token_us / ranks,
            pair_us=self.pair_us / ranks,
            kv_bytes=self.kv_bytes + self.weight_bytes * (ranks - 1) // ranks,
            ranks=ranks,
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

_MOONLIGHT: Final = DeviceModel(
    name="moonlight-16b-a3b on h200, linear",
    provenance=(
        "least squares of relative error over benchmarks/results/h200-decode-grid.json (commit of 2026-11-23): "
        "decode within 12%, prefill of 8k and 51k exact"
    ),
    base_us=2_350.0,
    row_us=79.9,
    expert_us=0.0,
    experts=64,
    experts_per_token=6,
    token_us=8.72,
    context_us=0.01119,
    pair_us=0.000476,
    host_us=500.0,
    kv_token_bytes=27 * 576 * 2,
    kv_bytes=98_000_000_000,
    copy_us=27 * 576 * 2 / 50_000,  # 50 GB/s over PCIe 5 x16
    sync_us=2 * 27 * 10.0,  # two a layer
    weight_bytes=31_900_000_000,
)
_MOONLIGHT_EXPERTS: Final = replace(
    _MOONLIGHT,
    name="moonlight-16b-a3b on h200, by experts touched",
    provenance="as the linear one, with the experts a step touches as a term: decode within 5%",
    base_us=2_404.0,
    row_us=19.6,
    expert_us=100.1,
    token_us=8.02,
    context_us=0.00742,
    pair_us=0.000472,
)

DEVICES: Final[dict[tuple[str, str], DeviceModel]] = {
    ("moonlight", "h200"): _MOONLIGHT,
    ("moonlight-experts", "h200"): _MOONLIGHT_EXPERTS,
}
"""By names of model and device. The scheduler's own prices have the form of the linear one."""
