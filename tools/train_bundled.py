# SPDX-License-Identifier: MIT
"""Train the bundled model on one GPU with transformers' own DeepseekV3ForCausalLM, for a given number of
seconds.

In: the model folder (config), packed data (`bundled_pack.py`), perhaps the state of an earlier call. Out, in
`--out`: `state.N.npy` (float32 weights, split so that each file stays small), `log.jsonl` (losses) and, with
`--export`, the bf16 `model.safetensors` in DeepSeek's own tensor names. The schedule runs on the clock, not
on steps: nothing is cut off.

Two things differ from the stock forward, both exact rewrites that save the same weights: the experts run as
one wide feed-forward whose inner columns carry the routing weights (at 8 experts this beats any gathering),
and attention is a plain causal SDPA. Routing bias follows DeepSeek-V3's loss-free balancing (arXiv
2408.15664): after each step it moves by a fixed amount against an expert's excess load. Matrices are
optimised by Muon with Moonlight's scaling (arXiv 2502.16982), the rest by AdamW.

    python tools/train_bundled.py --model DIR --data DIR --out DIR --seconds 480 --progress 0 0.5
    python tools/train_bundled.py ... --progress 0.5 1 --resume DIR
    python tools/train_bundled.py --model DIR --resume MIDDLE END --share 0.6 --export
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bundled_pack import answer_mask, document_starts
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AutoConfig, AutoTokenizer, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

MICRO_TOKENS = 65_536
STEP_TOKENS = 262_144
SHORT, LONG = 2048, 16_384
DECAY_FROM = 0.55
WARMUP_STEPS = 100
MUON_MOMENTUM, WEIGHT_DECAY = 0.95, 0.1
ADAM_LR = 3e-3
BALANCE_STEP = 1e-3
CONTEXT_WEIGHT = 0.3  # loss weight of what the assistant reads, against 1 for what it writes
STATE_FILES = 3
# Share of the rows drawn from each set: first while the rate is constant, then while it decays.
MIXTURE = {
    "code": (0.36, 0.22),
    "sessions": (0.26, 0.18),
    "windows": (0.14, 0.22),
    "tool_call": (0.14, 0.20),
    "documented_code": (0.06, 0.09),
    "written_code": (0.02, 0.05),
    "snippets": (0.01, 0.02),
    "talk": (0.02, 0.04),
}
# Share of the rows that begin where a document begins; the others begin anywhere.
STARTS_SHARE = {"code": 0.5, "sessions": 0.2}


def moe_forward(self: DeepseekV3MoE, hidden_states: Tensor) -> Tensor:
    """Compute DeepseekV3MoE.forward (one group) as a single wide feed-forward; count each expert's load."""
    x = hidden_states.flatten(0, -2)
    config, gate, experts = self.config, self.gate, self.experts
    with torch.autocast(x.device.type, enabled=False):
        scores = F.linear(x.float(), gate.weight.float()).sigmoid()
    chosen = (scores.detach() + gate.e_score_correction_bias).topk(config.num_experts_per_tok, dim=-1).indices
    mask = torch.zeros_like(scores).scatter_(1, chosen, 1.0)
    self.load.add_(mask.sum(0))
    weights = scores * mask
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * config.routed_scaling_factor
    inner = F.linear(x, experts.gate_up_proj.flatten(0, 1)).view(x.shape[0], config.n_routed_experts, -1)
    up_gate, up = inner.chunk(2, dim=-1)
    inner = F.silu(up_gate) * up * weights.to(up.dtype).unsqueeze(-1)
    out = F.linear(inner.flatten(1), experts.down_proj.transpose(0, 1).flatten(1))
    return out.view_as(hidden_states) + self.shared_experts(hidden_states)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: SDPBackend) -> Tensor:
    """Causal attention, keys 128 and values 64 wide -> [B, L, H, 64]; flash needs both equally wide."""
    wide = F.pad(v, (0, q.shape[-1] - v.shape[-1])) if backend == SDPBackend.FLASH_ATTENTION else v
    out = F.scaled_dot_product_attention(q, k, wide, is_causal=True, scale=scale)
    return out[..., : v.shape[-1]].transpose(1, 2).contiguous()


def fastest_backend(device: str) -> SDPBackend:
    """Time `attend` forward and backward with each backend at the training shape."""
    if device == "cpu":
        return SDPBackend.MATH
    shapes = ((32, 4, SHORT, 128), (32, 4, SHORT, 128), (32, 4, SHORT, 64))
    q, k, v = (torch.randn(s, device=device, dtype=torch.bfloat16, requires_grad=True) for s in shapes)
    times: dict[SDPBackend, float] = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                for trial in range(6):
                    if trial == 1:
                        torch.cuda.synchronize()
                        start = time.perf_counter()
                    attend(q, k, v, 0.1, backend).sum().backward()
            torch.cuda.synchronize()
            times[backend] = (time.perf_counter() - start) / 5
        except RuntimeError as error:
            print(f"{backend.name}: {str(error).splitlines()[0]}")
    print("attention ms:", {backend.name: round(1e3 * t, 2) for backend, t in times.items()}, flush=True)
    return min(times, key=times.__getitem__)


def causal(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Serve transformers' attention interface by `attend`."""
    dtype = v.dtype
    return attend(q.to(dtype), k.to(dtype), v, scaling, module.config.sdpa_backend), None


def build(model_folder: Path, device: str) -> DeepseekV3ForCausalLM:
    """Build the model with float32 weights and the two rewritten forwards."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(model_folder)
    AttentionInterface.register("causal", causal)
    config._attn_implementation = "causal"
    config.dtype = torch.float32
    model = DeepseekV3ForCausalLM(config).float().to(device)
    model.config.sdpa_backend = fastest_backend(device)
    model.model.embed_tokens.padding_idx = None  # <|endoftext|> is read like any other id
    DeepseekV3MoE.forward = moe_forward
    for module in model.modules():
        if isinstance(module, DeepseekV3MoE):
            module.register_buffer(
                "load", torch.zeros(config.n_routed_experts, device=device), persistent=False
            )
    return model


def token_losses(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """Return each token's cross entropy: hidden [B, L, C], embedding [V, C], targets [B, L] -> [B, L]."""
    logits = F.linear(hidden, embedding).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


class Corpus:
    """All sets of one part, on the device; draws rows of tokens with their loss weights."""

    def __init__(self, folder: Path, part: str, tokenizer: AutoTokenizer, device: str) -> None:
        start, end, end_of_text = tokenizer.convert_tokens_to_ids(
            ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
        )
        assistant = tokenizer.encode("assistant\n", add_special_tokens=False)
        self.ids: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.starts: dict[str, Tensor] = {}
        for name in MIXTURE:
            raw = lzma.decompress((folder / f"{name}.{part}.xz").read_bytes())
            ids = np.concatenate(
                [np.frombuffer(raw, dtype=np.uint16), np.full(LONG + 1, end_of_text, np.uint16)]
            )
            weights = np.where(answer_mask(ids, start, end, assistant), 1.0, CONTEXT_WEIGHT).astype(
                np.float16
            )
            weights[-LONG - 1 :] = 0
            self.ids[name] = torch.from_numpy(ids.astype(np.int32)).to(device)
            self.weights[name] = torch.from_numpy(weights).to(device)
            self.starts[name] = torch.from_numpy(document_starts(ids[: -LONG - 1], end_of_text)).to(device)
        self.device = device

    def rows(self, counts: dict[str, int], length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `counts[set]` rows of each set: ids [B, length + 1] and weights [B, length] of the targets."""
        ids, weights = [], []
        for name, count in counts.items():
            starts = self.starts[name]
            first = starts[torch.randint(len(starts), (count,), generator=generator, device=self.device)]
            anywhere = torch.randint(
                len(self.ids[name]) - LONG - 1, (count,), generator=generator, device=self.device
            )
            coin = torch.rand(count, generator=generator, device=self.device)
            first = torch.where(coin < STARTS_SHARE.get(name, 1.0), first, anywhere)
            index = first[:, None] + torch.arange(length + 1, device=self.device)
            ids.append(self.ids[name][index])
            weights.append(self.weights[name][index[:, 1:]])
        return torch.cat(ids).long(), torch.cat(weights).float()


def draw_counts(rows: int, progress: float, rng: np.random.Generator) -> dict[str, int]:
    """Draw how many rows each set gives at this progress."""
    shares = np.array([share[int(progress >= DECAY_FROM)] for share in MIXTURE.values()])
    return dict(zip(MIXTURE, map(int, rng.multinomial(rows, shares / shares.sum())), strict=True))


@dataclass(slots=True)
class MatrixGroup:
    """Parameters whose matrices share one shape [R, C], with their stacked momentum [N, R, C]."""

    parameters: list[nn.Parameter]
    shape: tuple[int, int]
    momentum: Tensor


class Optimizer:
    """Muon for the matrices inside layers, fused AdamW for the embedding, norms and routers."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or "embed" in name or name.endswith("gate.weight"):
                others.append(parameter)
                continue
            rows, columns = parameter.shape[-2:]
            rows = rows // 2 if name.endswith("gate_up_proj") else rows
            by_shape.setdefault((rows, columns), []).append(parameter)
        self.groups = [
            MatrixGroup(ps, shape, torch.cat([torch.zeros_like(p).view(-1, *shape) for p in ps]))
            for shape, ps in by_shape.items()
        ]
        self.adam = torch.optim.AdamW(
            others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=others[0].is_cuda
        )
        self.parameters = list(model.parameters())

    @torch.no_grad()
    def step(self, rate: float, scale: float) -> None:
        """Apply the gradients at Muon rate `rate * scale`, AdamW rate `ADAM_LR * scale`; clear them."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.groups:
            gradient = torch.cat([p.grad.view(-1, *group.shape) for p in group.parameters])
            group.momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
            update = orthogonalise(gradient.lerp(group.momentum, MUON_MOMENTUM)).float()
            change = rate * scale * 0.2 * math.sqrt(max(group.shape))
            for parameter, part in zip(
                group.parameters,
                update.split([p.numel() // math.prod(group.shape) for p in group.parameters]),
                strict=True,
            ):
                parameter.mul_(1 - rate * scale * WEIGHT_DECAY)
                parameter.view(-1, *group.shape).sub_(part, alpha=change)
        for adam_group in self.adam.param_groups:
            adam_group["lr"] = ADAM_LR * scale
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None


def orthogonalise(g: Tensor) -> Tensor:
    """Bring the singular values of g [N, R, C] near 1 by five Newton-Schulz steps in bf16."""
    x = g.bfloat16()
    transposed = x.shape[-2] > x.shape[-1]
    x = x.mT if transposed else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if transposed else x


@torch.no_grad()
def balance(model: DeepseekV3ForCausalLM, scale: float) -> float:
    """Move each routing bias against its expert's excess load; return the worst load over the mean."""
    worst = []
    for module in model.modules():
        if isinstance(module, DeepseekV3MoE):
            mean = module.load.mean()
            module.gate.e_score_correction_bias.add_(
                torch.sign(mean - module.load), alpha=BALANCE_STEP * scale
            )
            worst.append((module.load / mean.clamp(min=1)).max())
            module.load.zero_()
    return torch.stack(worst).max()


def state_tensors(model: DeepseekV3ForCausalLM) -> list[Tensor]:
    """Return all trained tensors in a fixed order: parameters, then routing biases."""
    biases = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    return [*(p.data for p in model.parameters()), *biases]


def save_state(model: DeepseekV3ForCausalLM, folder: Path) -> None:
    flat = torch.cat([t.flatten().float() for t in state_tensors(model)]).cpu().numpy()
    for index, part in enumerate(np.array_split(flat, STATE_FILES)):
        np.save(folder / f"state.{index}.npy", part)


def load_state(model: DeepseekV3ForCausalLM, folders: list[Path], share: float = 1.0) -> None:
    """Load saved weights; of two folders, `share` of the last and the rest of the first."""
    flats = [
        np.concatenate([np.load(folder / f"state.{i}.npy") for i in range(STATE_FILES)]) for folder in folders
    ]
    flat = torch.from_numpy(share * flats[-1] + (1 - share) * flats[0])
    tensors = state_tensors(model)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def export(model: DeepseekV3ForCausalLM, path: Path) -> None:
    """Write bf16 weights under DeepSeek-V3's tensor names, one per expert; routing biases in float32."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                tensors[name.replace("gate_up_proj", f"{expert}.gate_proj.weight")] = gate
                tensors[name.replace("gate_up_proj", f"{expert}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(tensor):
                tensors[name.replace("down_proj", f"{expert}.down_proj.weight")] = down
        else:
            tensors[name] = tensor
    kept = {n: t.float() if n.endswith("correction_bias") else t.bfloat16() for n, t in tensors.items()}
    save_file({n: t.contiguous().clone().cpu() for n, t in kept.items()}, path, metadata={"format": "pt"})


class Trainer:
    """The training loop and its clock."""

    def __init__(self, args: argparse.Namespace, device: str) -> None:
        self.args, self.device = args, device
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        self.model = build(args.model, device)
        if args.resume:
            load_state(self.model, args.resume)
        self.optimizer = Optimizer(self.model)
        self.train = Corpus(args.data, "train", tokenizer, device)
        self.validation = Corpus(args.data, "validation", tokenizer, device)
        self.generator = torch.Generator(device).manual_seed(1 + int(1000 * args.progress[0]))
        self.rng = np.random.default_rng(1 + int(1000 * args.progress[0]))
        self.losses = token_losses
        if device != "cpu":
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
            self.losses = torch.compile(token_losses, dynamic=False)
        self.log = (args.out / "log.jsonl").open("a")

    def row_losses(self, ids: Tensor) -> Tensor:
        """Return the loss of every predicted token of ids [B, L + 1]."""
        with torch.autocast(self.device, dtype=torch.bfloat16), sdpa_kernel(self.model.config.sdpa_backend):
            embedded = self.model.model.embed_tokens(ids[:, :-1]).bfloat16()
            hidden = self.model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            return self.losses(hidden, self.model.lm_head.weight, ids[:, 1:].contiguous())

    def validate(self) -> dict[str, float]:
        """Return each set's loss per answer token over one fixed batch (gradients on: the same graphs)."""
        rows = MICRO_TOKENS // SHORT
        share = {
            "code": 8,
            "sessions": 8,
            "windows": 6,
            "tool_call": 4,
            "documented_code": 3,
            "written_code": 1,
            "talk": 1,
            "snippets": 1,
        }
        counts = {name: count * rows // 32 for name, count in share.items()}
        counts["code"] += rows - sum(counts.values())
        ids, weights = self.validation.rows(counts, SHORT, torch.Generator(self.device).manual_seed(7))
        losses, answers = self.row_losses(ids).detach(), (weights == 1).float()
        found, first = {}, 0
        for name, count in counts.items():
            part = slice(first, first + count)
            found[name] = round(
                (losses[part] * answers[part]).sum().item() / max(1.0, answers[part].sum().item()), 4
            )
            first += count
        for module in self.model.modules():
            if isinstance(module, DeepseekV3MoE):
                module.load.zero_()
        return found

    def micro_step(self, progress: float, length: int) -> Tensor:
        counts = draw_counts(MICRO_TOKENS // length, progress, self.rng)
        ids, weights = self.train.rows(counts, length, self.generator)
        loss = (self.row_losses(ids) * weights).sum() / weights.sum()
        (loss * MICRO_TOKENS / STEP_TOKENS).backward()
        return loss.detach()

    def run(self) -> None:
        """Warm up the graphs, then train until the clock has run from the first to the last progress."""
        begin, end = self.args.progress
        for length in (SHORT, LONG):
            self.micro_step(0.0, length)
        for parameter in self.optimizer.parameters:
            parameter.grad = None
        self._write({"event": "start", "validation": self.validate()})
        start = saved = time.perf_counter()
        step = 0
        while (elapsed := time.perf_counter() - start) < self.args.seconds:
            progress = begin + (end - begin) * elapsed / self.args.seconds
            # A call starts with an empty optimiser, so its first steps are small.
            scale = rate_scale(progress) * min(1.0, (step + 1) / WARMUP_STEPS)
            loss = torch.zeros((), device=self.device)
            for micro in range(STEP_TOKENS // MICRO_TOKENS):
                # While the rate decays, one micro-batch in four is long: long contexts are learnt last.
                length = LONG if progress >= DECAY_FROM and micro == 0 else SHORT
                loss += self.micro_step(progress, length)
            self.optimizer.step(self.args.rate, scale)
            worst = balance(self.model, min(1.0, 4 * scale))
            step += 1
            if step % 25 == 0:
                mean = loss.item() * MICRO_TOKENS / STEP_TOKENS
                row = {
                    "progress": round(progress, 4),
                    "step": step,
                    "tokens": step * STEP_TOKENS,
                    "seconds": round(elapsed, 1),
                }
                self._write(
                    row
                    | {"loss": round(mean, 4), "scale": round(scale, 4), "worst_load": round(worst.item(), 3)}
                )
            if time.perf_counter() - saved > self.args.save_seconds:
                saved = time.perf_counter()
                self._write({"progress": round(progress, 4), "validation": self.validate()})
                save_state(self.model, self.args.out)
        self._write(
            {"progress": end, "step": step, "tokens": step * STEP_TOKENS, "validation": self.validate()}
        )
        save_state(self.model, self.args.out)

    def _write(self, row: dict[str, object]) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()


def rate_scale(progress: float) -> float:
    """Return the share of the peak rate: constant, then linear decay to zero."""
    return max(0.0, min(1.0, (1 - progress) / (1 - DECAY_FROM)))


def main() -> None:
    parser = argparse.ArgumentParser(description="train the bundled model")
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and the tokenizer")
    parser.add_argument("--data", type=Path, help="folder written by bundled_pack.py")
    parser.add_argument("--out", type=Path, default=Path("."), help="where state and log go")
    parser.add_argument(
        "--resume", type=Path, nargs="+", help="folder of an earlier call; two to average when exporting"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the last of two folders in the average"
    )
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--save-seconds", type=float, default=120.0)
    parser.add_argument(
        "--progress", type=float, nargs=2, default=(0.0, 1.0), help="part of the schedule to run"
    )
    parser.add_argument("--rate", type=float, default=8e-3, help="peak Muon rate")
    parser.add_argument("--export", action="store_true", help="write model.safetensors into --model and stop")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.export:
        model = build(args.model, device)
        load_state(model, args.resume, args.share)
        export(model, args.model / "model.safetensors")
        return
    torch.set_float32_matmul_precision("high")
    Trainer(args, device).run()


if __name__ == "__main__":
    main()
