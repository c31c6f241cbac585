# SPDX-License-Identifier: MIT
"""The sampler: what a row gets is its own affair, and each parameter does what its documentation says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.kernels.ref.step import greedy
from tokenspeed.sampling import Report, Rows, Sampler

VOCAB = 400
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"top_p": 0.8},
    {"top_k": 300},
    {"min_p": 0.2},
    {"temperature": 0.0, "repetition": 1.3},
    {"presence": 1.0, "frequency": 0.5, "top_k": 5},
    {"logit_bias": {3: 5.0, 7: -100.0}},
    {"temperature": 0.0, "tokens_min": 4, "stop_ids": (1, 2), "logprobs": 3},
]


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@dataclass(frozen=True)
class Sampled:
    """The choices of one step."""

    tokens: Tensor
    fault: Tensor
    report: Report | None

    def logprobs(self) -> list[TokenLogprob | None] | None:
        return None if self.report is None else self.report.read()


def sample(sampler: Sampler, logits: Tensor, slots: np.ndarray, positions: np.ndarray) -> Sampled:
    """Sample as a step does: the likeliest first, then whoever wants more."""
    rows = Rows(
        torch.from_numpy(slots.astype(np.int64)).to(logits.device),
        torch.from_numpy(positions.astype(np.int64)).to(logits.device),
        slots,
    )
    last_tokens = torch.full((5001,), -1, device=logits.device)
    chosen = torch.zeros(len(slots), dtype=torch.int32, device=logits.device)
    greedy(logits, rows.slots, last_tokens, chosen)
    report = sampler.refine(logits, chosen, last_tokens, rows)
    assert last_tokens[rows.slots].tolist() == chosen.clamp_min(0).tolist()
    return Sampled(chosen.clamp_min(0), chosen < 0, report)


def logits(seed: int, rows: int = 1, vocab: int = VOCAB) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def one(params: SamplingParams, row: Tensor, prompt: np.ndarray, output: np.ndarray) -> Sampled:
    """Sample one row of a fresh sampler whose request has this past."""
    sampler = Sampler(slots=1, vocab=row.shape[-1], device="cpu")
    sampler.bind(0, params, prompt, output)
    return sample(sampler, row, ids(0), ids(len(prompt) + len(output)))


def choice(row: list[float], prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **given: Any) -> int:
    params = SamplingParams(**{"temperature": 0.0, "seed": 0, **given})
    return int(one(params, torch.tensor([row]), ids(*prompt), ids(*output)).tokens[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_chooses_what_the_cpu_chooses() -> None:
    assert story("cuda", range(len(KINDS))) == story("cpu", range(len(KINDS)))


def story(device: str, members: Any, steps: int = 6) -> dict[int, list[int]]:
    """Run some requests side by side for a few steps, each on its own logits; return what each said."""
    sampler = Sampler(slots=32, vocab=VOCAB, device=device)
    slots = {member: 31 - 3 * place for place, member in enumerate(members)}
    prompt = ids(5, 6, 7)
    said: dict[int, list[int]] = {member: [] for member in members}
    for member, slot in slots.items():
        sampler.bind(slot, SamplingParams(seed=member * 17, **KINDS[member]), prompt, ids())
    for step in range(steps):
        table = torch.cat([logits(1000 * member + step) for member in members]).to(device)
        sampled = sample(sampler, table, ids(*slots.values()), np.full(len(slots), 3 + step, np.int32))
        for member, token in zip(members, sampled.tokens.tolist(), strict=True):
            said[member].append(token)
    return said


def test_a_request_says_the_same_alone_and_in_any_company() -> None:
    together = story("cpu", range(len(KINDS)))
    assert story("cpu", list(reversed(range(len(KINDS))))) == together
    for member in range(len(KINDS)):
        assert story("cpu", [member]) == {member: together[member]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_sent_back_goes_on_as_if_nothing_was(kind: dict[str, Any]) -> None:
    params, prompt = SamplingParams(seed=3, **kind), ids(5, 6, 7)
    sampler = Sampler(slots=2, vocab=VOCAB, device="cpu")
    sampler.bind(0, params, prompt, ids())
    said: list[int] = []
    for step in range(8):
        said.append(int(sample(sampler, logits(step), ids(0), ids(3 + step)).tokens[0]))
    resumed = Sampler(slots=2, vocab=VOCAB, device="cpu")
    resumed.bind(1, params, prompt, ids(*said[:4]))
    again = [int(sample(resumed, logits(step), ids(1), ids(3 + step)).tokens[0]) for step in range(4, 8)]
    assert again == said[4:]


def test_a_replay_says_what_was_recorded_by_position_and_leaves_its_neighbours_alone() -> None:
    sampler = Sampler(slots=3, vocab=VOCAB, device="cpu")
    recorded = [9, VOCAB - 1, 0, 9]
    forced = np.array(recorded, "<i4").tobytes()
    prompt = ids(5, 6, 7)
    sampler.bind(0, SamplingParams(temperature=0.0, seed=0, logprobs=1), prompt, ids())
    sampler.bind(1, SamplingParams(seed=1, forced=forced, logprobs=0, frequency=0.5), prompt, ids())
    plain = Sampler(slots=1, vocab=VOCAB, device="cpu")
    plain.bind(0, SamplingParams(temperature=0.0, seed=0, logprobs=1), prompt, ids())
    for step, token in enumerate([*recorded, None]):
        row = logits(step)
        if step == 2:  # sent back, and resumed in another slot
            sampler.bind(1, SamplingParams(seed=0), prompt, ids())
            sampler.bind(
                2,
                SamplingParams(seed=1, forced=forced, logprobs=0, frequency=0.5),
                prompt,
                ids(*recorded[:2]),
            )
        slots = ids(0, 1 if step < 2 else 2)
        sampled = sample(sampler, row.expand(2, -1), slots, np.full(2, 3 + step, np.int32))
        alone = sample(plain, row, ids(0), ids(3 + step))
        assert sampled.tokens[0] == alone.tokens[0]
        if token is not None:
            assert sampled.tokens[1] == token
            entries = sampled.logprobs()
            assert entries is not None
            assert entries[1] is not None
            assert entries[1].id == token
            assert entries[1].logprob == pytest.approx(float(row[0].log_softmax(-1)[token]), abs=1e-5)


def test_seeds_differ_and_repeat() -> None:
    def said(seed: int) -> list[int]:
        sampler = Sampler(slots=1, vocab=VOCAB, device="cpu")
        sampler.bind(0, SamplingParams(seed=seed), ids(1), ids())
        return [int(sample(sampler, torch.zeros(1, VOCAB), ids(0), ids(p)).tokens[0]) for p in range(1, 30)]

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert len(set(said(1))) > 15


def test_tokens_come_as_often_as_they_should_over_seeds() -> None:
    slots, vocab = 5000, 4
    sampler = Sampler(slots=slots, vocab=vocab, device="cpu")
    for slot in range(slots):
        sampler.bind(slot, SamplingParams(seed=slot), ids(0), ids())
    row = torch.tensor([1.0, 0.0, 2.0, -1.0])
    drawn = sample(sampler, row.expand(slots, -1), np.arange(slots, dtype=np.int32), np.ones(slots, np.int32))
    expected = row.softmax(-1).numpy() * slots
    chi_square = float(
        ((np.bincount(drawn.tokens.numpy(), minlength=vocab) - expected) ** 2 / expected).sum()
    )
    assert chi_square < 16.3  # 3 degrees of freedom: above once in 10^3 honest samplers


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    assert choice([0.0, 2.0, 2.0, 1.0]) == 1
    assert choice([-5.0, -math.inf, -4.0]) == 2


def test_repetition_divides_positive_and_multiplies_negative_logits() -> None:
    assert choice([3.0, 2.0], prompt=(0,), repetition=1.4) == 0
    assert choice([3.0, 2.0], prompt=(0,), repetition=1.6) == 1
    assert choice([3.0, 2.0], output=(0,), repetition=1.6) == 1
    assert choice([-2.0, -3.0], prompt=(0,), repetition=1.6) == 1
    assert choice([-2.0, -3.0], prompt=(0, 0, 0), repetition=1.4) == 0
    assert choice([2.0, 3.0], prompt=(0,), repetition=0.5) == 0


def test_frequency_counts_the_output_and_presence_does_not() -> None:
    assert choice([3.0, 1.5], output=(0, 0), frequency=0.7) == 0
    assert choice([3.0, 1.5], output=(0, 0), frequency=0.8) == 1
    assert choice([3.0, 1.5], prompt=(0, 0, 0), frequency=0.8) == 0
    assert choice([3.0, 1.5], output=(0, 0, 0), presence=1.4) == 0
    assert choice([3.0, 1.5], output=(0,), presence=1.6) == 1
    assert choice([3.0, 1.5], prompt=(0,), presence=1.6) == 0
    assert choice([1.0, 2.0], output=(0,), presence=-1.5) == 0


def test_penalties_follow_what_is_said_step_by_step() -> None:
    sampler = Sampler(slots=1, vocab=3, device="cpu")
    sampler.bind(0, SamplingParams(temperature=0.0, frequency=1.0, seed=0), ids(2), ids())
    row = torch.tensor([[2.5, 2.0, 0.0]])
    said = [int(sample(sampler, row, ids(0), ids(1 + step)).tokens[0]) for step in range(6)]
    assert said == [0, 1, 0, 1, 0, 1]


def test_bias_is_added_after_penalties() -> None:
    assert choice([0.0, 1.0], logit_bias={0: 1.5}) == 0
    assert choice([0.0, 9.0], logit_bias={1: -100.0}) == 0
    assert choice([1.0, 0.9], output=(1,), repetition=2.0, logit_bias={1: 0.6}) == 1


def test_stop_ids_are_masked_until_enough_is_said() -> None:
    given = {"stop_ids": (1,), "tokens_min": 2}
    assert choice([0.0, 9.0, 1.0], prompt=(0, 0), **given) == 2
    assert choice([0.0, 9.0, 1.0], prompt=(0, 0), output=(2,), **given) == 2
    assert choice([0.0, 9.0, 1.0], prompt=(0, 0), output=(2, 2), **given) == 1
    assert choice([0.0, 9.0, 1.0], stop_ids=(1,)) == 1
    assert choice([0.0, 9.0, 1.0], logit_bias={1: 100.0}, **given) == 2


def test_slot_bound_anew_forgets() -> None:
    sampler = Sampler(slots=1, vocab=2, device="cpu")
    row = torch.tensor([[0.0, 5.0]])
    whole = SamplingParams(
        temperature=0.0,
        repetition=2.0,
        presence=2.0,
        logit_bias={1: -100.0},
        tokens_min=9,
        stop_ids=(1,),
        seed=0,
    )
    sampler.bind(0, whole, ids(1), ids(1))
    assert sample(sampler, row, ids(0), ids(2)).tokens.tolist() == [0]
    sampler.bind(0, SamplingParams(temperature=0.0, seed=0), ids(0), ids())
    sampled = sample(sampler, row, ids(0), ids(1))
    assert sampled.tokens.tolist() == [1]
    assert sampled.logprobs() is None


def test_logprobs_are_those_of_the_model_whatever_the_sampling() -> None:
    row = torch.tensor([[1.0, 4.0, 4.0, 2.0, -1.0]])
    params = SamplingParams(temperature=0.0, logit_bias={3: 50.0}, frequency=2.0, logprobs=3, seed=0)
    sampler = Sampler(slots=1, vocab=5, device="cpu")
    sampler.bind(0, params, ids(), ids(1))
    (entry,) = sample(sampler, row, ids(0), ids(1)).logprobs() or [None]
    plain = row.log_softmax(-1)[0]
    assert isinstance(entry, TokenLogprob)
    assert (entry.id, entry.rank) == (3, 3)
    assert entry.logprob == pytest.approx(float(plain[3]), abs=1e-6)
    assert [token for token, _ in entry.top] == [1, 2, 3]
    assert [value for _, value in entry.top] == pytest.approx(plain[[1, 2, 3]].tolist(), abs=1e-6)


def test_logprobs_go_to_the_rows_that_ask_and_as_many_as_they_ask() -> None:
    sampler = Sampler(slots=4, vocab=8, device="cpu")
    for slot, count in enumerate([None, 0, 5, 20]):
        sampler.bind(slot, SamplingParams(temperature=0.0, logprobs=count, seed=0), ids(), ids())
    sampled = sample(sampler, logits(0, 4, 8), ids(3, 0, 2, 1), ids(0, 0, 0, 0))
    entries = sampled.logprobs()
    assert entries is not None
    assert [None if entry is None else len(entry.top) for entry in entries] == [8, None, 5, 0]
    assert [entry.rank for entry in entries if entry] == [1, 1, 1]
    assert [entry.id for entry in entries if entry] == sampled.tokens[[0, 2, 3]].tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_faulty_row_is_reported_and_disturbs_no_other(bad: float, everywhere: bool) -> None:
    sampler = Sampler(slots=len(KINDS), vocab=VOCAB, device="cpu")
    places, positions = np.arange(len(KINDS), dtype=np.int32), np.full(len(KINDS), 3, np.int32)
    table = logits(5, len(KINDS))

    def said(table: Tensor) -> Sampled:
        for slot, kind in enumerate(KINDS):
            sampler.bind(slot, SamplingParams(seed=slot, **kind), ids(5, 6, 7), ids())
        return sample(sampler, table, places, positions)

    clean = said(table)
    for row in range(len(KINDS)):
        broken = table.clone()
        broken[row, slice(None) if everywhere else 11] = bad
        sampled = said(broken)
        assert bool(sampled.fault[row]) == (everywhere or bad != -math.inf)
        others = [other for other in range(len(KINDS)) if other != row]
        assert sampled.tokens[others].tolist() == clean.tokens[others].tolist()
        assert not bool(sampled.fault[others].any())
        assert 0 <= int(sampled.tokens[row]) < VOCAB


def test_step_that_samples_nothing() -> None:
    sampled = sample(Sampler(slots=1, vocab=VOCAB, device="cpu"), torch.zeros(0, VOCAB), ids(), ids())
    assert (sampled.tokens.tolist(), sampled.fault.tolist(), sampled.report) == ([], [], None)


def test_logits_are_only_read() -> None:
    table = logits(6, len(KINDS))
    before = table.clone()
    sampler = Sampler(slots=len(KINDS), vocab=VOCAB, device="cpu")
    for slot, kind in enumerate(KINDS):
        sampler.bind(slot, SamplingParams(seed=slot, **kind), ids(5, 6, 7), ids(1))
    sample(sampler, table, np.arange(len(KINDS), dtype=np.int32), np.full(len(KINDS), 4, np.int32))
    for slot, kind in enumerate(KINDS):
        sample(sampler, table[slot : slot + 1], ids(slot), ids(5))
        assert torch.equal(table, before), kind


def test_rehearsing_leaves_nothing_behind() -> None:
    sampler = Sampler(slots=2, vocab=VOCAB, device="cpu")
    sampler.bind(1, SamplingParams(seed=3, presence=0.5), ids(5), ids(6))
    plain = Sampler(slots=2, vocab=VOCAB, device="cpu")
    plain.bind(1, SamplingParams(seed=3, presence=0.5), ids(5), ids(6))
    sampler.rehearse(5)
    said = [sample(each, logits(4), ids(1), ids(2)).tokens.tolist() for each in (sampler, plain)]
    assert said[0] == said[1]
