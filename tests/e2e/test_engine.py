# SPDX-License-Identifier: MIT
"""The whole core in one process, on tiny checkpoints in the true format, against transformers and against
itself.

Greedy tokens equal transformers' own, and every way to run the same requests gives the same tokens:
overlapped or not, prompts in chunks or whole, prefixes found or computed, together or alone, sent back for
want of blocks or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tokenspeed.base import config
from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.engine import core, wire
from tokenspeed.engine.boot import Core, boot
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import Loop
from tokenspeed.exec.batch import Batch

VOCAB = 160
NEW_TOKENS = 24
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 40,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
    ),
}
PROMPT_LENGTHS = (5, 40, 70, 17, 33, 96, 1, 64)


@dataclass
class Answer:
    """What came of one request."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    cached_tokens: int = -1
    retractions: int = 0
    error: str | None = None
    refused: str | None = None


class World:
    """A core and its loop, driven by hand; the test is the front."""

    def __init__(self, directory: Path, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "block_tokens": 16,
            "kv_cache_bytes": 2 << 20,
            "rows_max": 8,
            "prefill_tokens_max": 48,
            "threads": 1,
        }
        self.core: Core = boot(config.build(model=str(directory), **{**defaults, **options}))
        self.answers: dict[int, Answer] = {}
        self._inbox: list[wire.Request] = []
        desk = Desk(self.core.scheduler, vocab_size=self.core.model.vocab)
        clock, overlap = MonotonicClock(), self.core.resolved.overlap
        self.loop = Loop(desk, self.core.executor, self, self, clock, overlap=overlap)

    def drain(self, *, wait: bool) -> list[wire.Request]:
        messages, self._inbox = self._inbox, []
        return messages

    def send(self, report: wire.Report) -> None:
        match report:
            case wire.Deltas():
                for delta in report.items:
                    self._take(delta)
            case wire.Refused():
                self.answers[report.request_id].refused = report.reason
            case _:
                pass

    def say(self, message: wire.Request) -> None:
        self._inbox.append(message)

    def submit(self, prompt: Sequence[int], **sampling: Any) -> int:
        request_id = len(self.answers) + 1
        self.answers[request_id] = Answer()
        params = SamplingParams(**{"temperature": 0.0, "tokens_max": NEW_TOKENS, "seed": 7, **sampling})
        self.say(wire.Generate(request_id, wire.ids_bytes(np.array(prompt)), params))
        return request_id

    def finish(self) -> None:
        """Turn until every request has its closing message; invariants hold and every block is back."""
        self.loop.turn()
        while not all(answer.finish or answer.refused for answer in self.answers.values()):
            self.loop.turn()
        self.loop.turn()
        self.core.scheduler.check()
        stats = self.core.scheduler.stats()
        assert stats.blocks_free + stats.blocks_evictable == stats.blocks_total

    def answers_to(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Answer]:
        """Submit all at once and finish."""
        ids = [self.submit(prompt, **sampling) for prompt in prompts]
        self.finish()
        return [self.answers[i] for i in ids]

    def _take(self, delta: wire.Delta) -> None:
        answer = self.answers[delta.request_id]
        assert answer.finish is None, "something came after the closing message"
        answer.ids += wire.ids_array(delta.ids).tolist()
        answer.logprobs += delta.logprobs or ()
        answer.finish = delta.finish
        answer.error = delta.error
        answer.retractions = delta.retractions
        if delta.cached_tokens is not None:
            answer.cached_tokens = delta.cached_tokens


@dataclass(frozen=True)
class Checkpoint:
    """A directory, and what transformers says to the prompts."""

    name: str
    directory: Path
    prompts: list[list[int]]
    expected: list[list[int]]


@pytest.fixture(scope="module", params=list(MODELS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _make("llama", tmp_path_factory.mktemp("llama"))


@torch.inference_mode()
def _make(name: str, directory: Path, edit: Callable[[Any], None] | None = None) -> Checkpoint:
    family, changes = MODELS[name]
    torch.manual_seed(0)
    model_config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(model_config).float().eval()
    if edit is not None:
        edit(model)
    model.save_pretrained(directory)
    random = np.random.default_rng(1)
    prompts = [random.integers(3, VOCAB, length).tolist() for length in PROMPT_LENGTHS]
    expected = [_greedy(model, prompt) for prompt in prompts]
    return Checkpoint(name, directory, prompts, expected)


def _greedy(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor(prompt)[None]
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def _ids(answers: list[Answer]) -> list[list[int]]:
    return [answer.ids for answer in answers]


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_greedy_answers_equal_transformers(checkpoint: Checkpoint, overlap: str) -> None:
    answers = World(checkpoint.directory, overlap=overlap).answers_to(checkpoint.prompts)
    assert _ids(answers) == checkpoint.expected
    assert {answer.finish for answer in answers} == {"length"}


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_buffers_apart_from_the_host_equal_shared_ones(checkpoint: Checkpoint, overlap: str) -> None:
    world = World(checkpoint.directory, overlap=overlap)
    executor = world.core.executor
    limits = executor._batch.limits  # pyright: ignore[reportPrivateUsage]
    executor._batch = Batch(limits, torch.device("cpu"), mirrored=True)  # pyright: ignore[reportPrivateUsage]
    assert _ids(world.answers_to(checkpoint.prompts)) == checkpoint.expected
    assert _ids(world.answers_to(checkpoint.prompts)) == checkpoint.expected


def test_whole_prompts_equal_chunks(checkpoint: Checkpoint) -> None:
    for tokens in (7, 512):
        world = World(checkpoint.directory, prefill_tokens_max=tokens)
        assert _ids(world.answers_to(checkpoint.prompts)) == checkpoint.expected


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_found_prefix_equals_a_computed_one(checkpoint: Checkpoint, overlap: str) -> None:
    world = World(checkpoint.directory, overlap=overlap)
    cold = world.answers_to(checkpoint.prompts)
    assert [answer.cached_tokens for answer in cold] == [0] * len(cold)
    warm = world.answers_to(checkpoint.prompts)
    assert _ids(warm) == checkpoint.expected
    assert [answer.cached_tokens for answer in warm] == [(n - 1) // 16 * 16 for n in PROMPT_LENGTHS]
    turns = [p + e for p, e in zip(checkpoint.prompts, checkpoint.expected, strict=True)]
    again = world.answers_to([turn[:-4] for turn in turns], tokens_max=4)
    assert _ids(again) == [e[-4:] for e in checkpoint.expected]
    assert all(a.cached_tokens >= w.cached_tokens for a, w in zip(again, warm, strict=True))
    off = World(checkpoint.directory, prefix_cache=False)
    assert _ids(off.answers_to(checkpoint.prompts)) == checkpoint.expected
    assert [answer.cached_tokens for answer in off.answers_to(checkpoint.prompts)] == [0] * len(cold)


def test_alone_equals_together(checkpoint: Checkpoint) -> None:
    world = World(checkpoint.directory, rows_max=1, prefix_cache=False)
    assert _ids(world.answers_to(checkpoint.prompts)) == checkpoint.expected


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_too_few_blocks_change_nothing_but_the_order(checkpoint: Checkpoint, overlap: str) -> None:
    world = World(checkpoint.directory, overlap=overlap)
    per_block = world.core.model.kv_bytes_per_token * 16
    scarce = World(checkpoint.directory, overlap=overlap, kv_cache_bytes=17 * per_block, max_model_len=240)
    answers = scarce.answers_to(checkpoint.prompts * 2)
    assert _ids(answers) == checkpoint.expected * 2
    assert scarce.core.scheduler.stats().retractions > 0
    assert sum(answer.retractions for answer in answers) == scarce.core.scheduler.stats().retractions


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_seeded_sampling_does_not_depend_on_the_batch(llama: Checkpoint, overlap: str) -> None:
    wish: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "presence": 0.5, "repetition": 1.2}
    together = World(llama.directory, overlap=overlap).answers_to(llama.prompts, **wish)
    alone = World(llama.directory, rows_max=1, prefill_tokens_max=9).answers_to(llama.prompts, **wish)
    assert _ids(together) == _ids(alone)
    assert _ids(together) != llama.expected
    other = World(llama.directory, overlap=overlap).answers_to(llama.prompts, **{**wish, "seed": 8})
    assert _ids(other) != _ids(together)


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_logprobs_come_with_every_token(llama: Checkpoint, overlap: str) -> None:
    answers = World(llama.directory, overlap=overlap).answers_to(llama.prompts, logprobs=3)
    for answer, expected in zip(answers, llama.expected, strict=True):
        assert answer.ids == expected
        assert [entry.id for entry in answer.logprobs] == expected
        for entry in answer.logprobs:
            assert entry.rank == 1
            assert entry.top[0] == (entry.id, entry.logprob)
            assert len(entry.top) == 3


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_replay_is_exact_beside_ordinary_rows(llama: Checkpoint, overlap: str) -> None:
    """Chunked, on found prefixes, sent back for want of blocks: the recorded ids, and others as ever."""
    random = np.random.default_rng(5)
    recorded = [random.integers(0, VOCAB, NEW_TOKENS).astype("<i4") for _ in llama.prompts]
    roomy = World(llama.directory, overlap=overlap, prefill_tokens_max=16)
    per_block = roomy.core.model.kv_bytes_per_token * 16
    scarce = World(llama.directory, overlap=overlap, kv_cache_bytes=17 * per_block, max_model_len=240)
    for world in (roomy, scarce):
        for _ in range(2):  # the second time on found prefixes
            replays: list[int] = []
            others: list[int] = []
            for prompt, answer in zip(llama.prompts, recorded, strict=True):
                replays.append(world.submit(prompt, forced=answer.tobytes(), logprobs=0))
                others.append(world.submit(prompt))
            world.finish()
            assert [world.answers[i].ids for i in replays] == [answer.tolist() for answer in recorded]
            assert [world.answers[i].finish for i in replays] == ["length"] * len(replays)
            assert [[e.id for e in world.answers[i].logprobs] for i in replays] == [
                answer.tolist() for answer in recorded
            ]
            assert [world.answers[i].ids for i in others] == llama.expected
    assert scarce.core.scheduler.stats().retractions > 0


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_replay_of_what_the_model_says_has_its_logprobs(llama: Checkpoint, overlap: str) -> None:
    world = World(llama.directory, overlap=overlap)
    plain = world.answers_to(llama.prompts, logprobs=2)
    replays = [
        world.submit(prompt, forced=np.array(answer, "<i4").tobytes(), logprobs=2, temperature=1.0)
        for prompt, answer in zip(llama.prompts, llama.expected, strict=True)
    ]
    world.finish()
    for request_id, answer in zip(replays, plain, strict=True):
        assert [(e.id, e.rank) for e in world.answers[request_id].logprobs] == [
            (e.id, 1) for e in answer.logprobs
        ]
        for entry, wanted in zip(world.answers[request_id].logprobs, answer.logprobs, strict=True):
            assert entry.logprob == pytest.approx(wanted.logprob, abs=1e-4)


def test_a_replay_outside_the_vocabulary_is_refused_and_harms_nobody(llama: Checkpoint) -> None:
    world = World(llama.directory)
    bad = world.submit(llama.prompts[0], forced=np.array([VOCAB], "<i4").tobytes())
    good = world.submit(llama.prompts[0])
    world.finish()
    assert world.answers[bad].refused == "invalid"
    assert world.answers[good].ids == llama.expected[0]


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_stop_ids_end_an_answer(llama: Checkpoint, overlap: str) -> None:
    stop = llama.expected[0][5]
    world = World(llama.directory, overlap=overlap)
    (answer,) = world.answers_to(llama.prompts[:1], stop_ids=(stop,))
    assert answer.ids == llama.expected[0][: llama.expected[0].index(stop) + 1]
    assert answer.finish == "stop"
    (longer,) = world.answers_to(llama.prompts[:1], stop_ids=(stop,), tokens_min=NEW_TOKENS)
    assert stop not in longer.ids[:-1]
    assert len(longer.ids) == NEW_TOKENS


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_aborts_at_any_turn_free_everything(llama: Checkpoint, overlap: str) -> None:
    for turns in range(12):
        world = World(llama.directory, overlap=overlap, prefill_tokens_max=16)
        ids = [world.submit(prompt) for prompt in llama.prompts]
        for _ in range(turns):
            world.loop.turn()
        world.say(wire.Abort(ids[::2]))
        world.finish()
        for request_id, expected in zip(ids[1::2], llama.expected[1::2], strict=True):
            assert world.answers[request_id].ids == expected
        for request_id, expected in zip(ids[::2], llama.expected[::2], strict=True):
            assert world.answers[request_id].ids == expected[: len(world.answers[request_id].ids)]


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_row_that_is_not_finite_ends_alone(name: str, overlap: str, tmp_path: Path) -> None:
    clean = _make(name, tmp_path / "clean")
    said = {token for answer in (*clean.expected, *clean.prompts) for token in answer}
    poison = next(token for token in range(3, VOCAB) if token not in said)

    def plant(model: Any) -> None:
        model.get_input_embeddings().weight.data[poison] = torch.nan

    _make_poisoned(name, tmp_path / "poisoned", plant)
    world = World(tmp_path / "poisoned", overlap=overlap, kv_cache_bytes=None, max_model_len=256)
    sick = [[*prompt[: len(prompt) // 2], poison, *prompt[len(prompt) // 2 :]] for prompt in clean.prompts]
    for _ in range(3):  # later rounds run on blocks the sick ones left
        ids = [world.submit(prompt) for pair in zip(sick, clean.prompts, strict=True) for prompt in pair]
        world.finish()
        assert [world.answers[i].finish for i in ids[::2]] == ["error"] * len(sick)
        assert [world.answers[i].ids for i in ids[::2]] == [[]] * len(sick)
        assert [world.answers[i].ids for i in ids[1::2]] == clean.expected


def _make_poisoned(name: str, directory: Path, edit: Callable[[Any], None]) -> None:
    family, changes = MODELS[name]
    torch.manual_seed(0)
    model_config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(model_config).float().eval()
    edit(model)
    model.save_pretrained(directory)


FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8_block", "kv_dtype": "fp8"},
}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_alone_equals_together_in_every_format(checkpoint: Checkpoint, options: dict[str, Any]) -> None:
    together = World(checkpoint.directory, overlap="on", **options).answers_to(checkpoint.prompts)
    alone = World(checkpoint.directory, rows_max=1, **options).answers_to(checkpoint.prompts)
    assert _ids(together) == _ids(alone)
    assert {answer.finish for answer in alone} == {"length"}


def test_dummy_weights_need_no_checkpoint(llama: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama.directory / "config.json").read_bytes())
    worlds = [World(tmp_path, load_format="dummy", layers=1, seed=seed) for seed in (3, 3, 4)]
    first, again, other = (_ids(world.answers_to(llama.prompts)) for world in worlds)
    assert first == again != other
    assert worlds[0].core.model.layers == 1


def test_a_failed_loop_leaves_evidence(
    llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOKENSPEED_CACHE_DIR", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, logger="tokenspeed")  # whatever a test before this one configured
    monkeypatch.setattr(logging.getLogger("tokenspeed"), "propagate", True)
    world = World(llama.directory)
    world.answers_to(llama.prompts[:1])
    core.dump(world.core, world.loop.timeline)
    (path,) = (tmp_path / "cache").iterdir()
    assert path.read_bytes() == world.core.scheduler.log()
    assert str(path) in caplog.text
    assert "StepRecord(" in caplog.text
