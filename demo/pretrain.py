"""Pre-training of the bundled base, Llama-Lumi-45M, on one card, and its quantization to NF4.

    python demo/pretrain.py --text pretrain.jsonl.xz --chat chat_train.jsonl.xz --out OUT [--minutes 11]
    python demo/pretrain.py --text T --chat C --out OUT --steps 2 --rows 2 --length 64     # a dry run without a card

Rewritten from the experiment that produced the base, with its numbers; another run gives another base. Shape and tokenizer are
those of the bundled base. `--text` has JSON lines of {"s": source, "text": ...}, `--chat` of {"messages": [...]}: third-party
text (see NOTICE) that is not in the repository. A full run needs a card of 40 GB and torch 2.11 or newer (torch.optim.Muon).
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.trust import read_json
from qlora_chat.models.weights.quantize import quantize_nf4
from qlora_chat.models.weights.shards import write_shards, write_small_files

MIX = {"snakes": 0.50, "classics-child": 0.13, "classics-simple": 0.10, "dialogues": 0.09, "small": 0.10, "dolly-long": 0.04,
       "other": 0.04}  # fmt: skip
"""Share of each kind of text in a batch."""
QUESTIONS_FROM, QUESTIONS = 0.6, 0.12
"""Plain question-answer lines start after this share of the time, with this weight."""
DIALOGUES = {"self_dialogue", "topical_chat", "synthetic_persona_chat", "sgd", "taskmaster4"}
SMALL = {"storybooks", "tinystories_slices", "aesop_children", "fairytaleqa", "onestopenglish", "sentences"}
SPEAKERS = (("Q", "A"), ("A", "B"), ("User", "Bot"))
HELD_OUT = 200
"""1/HELD_OUT of each kind is held out."""
MUON, ADAMW, WARM_UP = 0.02, 3e-3, 100
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kind_of(source: str) -> str:
    """Return the kind of a source's text in the mix."""
    if source in MIX:
        return source
    return "dialogues" if source in DIALOGUES else "small" if source in SMALL else "other"


def records(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def as_lines(messages: list[dict[str, str]]) -> str:
    """Return a dialogue as plain lines, so that the base sees answered questions before it is tuned to chat."""
    user, assistant = random.choice(SPEAKERS)
    return "\n".join(f"{user if each['role'] == 'user' else assistant}: {each['content']}" for each in messages)


@dataclass(frozen=True)
class TrainingText:
    """Tokens of every kind, concatenated on the card."""

    ids: Tensor
    starts: Tensor
    sizes: Tensor
    weights: Tensor
    """Weight of each kind; the questions are last, with weight 0."""
    held_out: Tensor
    rows: int
    """Sequences per step."""
    length: int
    """Tokens per sequence."""

    def batch(self, progress: float) -> Tensor:
        """Return random sequences, (rows, length + 1); `progress` is the finished share of the run."""
        weights = self.weights.clone()
        weights[-1] = QUESTIONS if progress >= QUESTIONS_FROM else 0.0
        kinds = torch.multinomial(weights, self.rows, replacement=True)
        begin = self.starts[kinds] + (torch.rand(self.rows, device=DEVICE) * (self.sizes[kinds] - self.length - 2)).long()
        return self.ids[begin[:, None] + torch.arange(self.length + 1, device=DEVICE)].long()

    def held_out_batches(self) -> Iterator[Tensor]:
        """Yield four batches, the same every time."""
        generator = torch.Generator(device=DEVICE).manual_seed(1)
        for _ in range(4):
            begin = torch.randint(0, len(self.held_out) - self.length - 1, (self.rows,), device=DEVICE, generator=generator)
            yield self.held_out[begin[:, None] + torch.arange(self.length + 1, device=DEVICE)].long()


def read(text: Path, chat: Path, tokenizer: ModelTokenizer, rows: int, length: int) -> TrainingText:
    """Tokenize both files. SystemExit names a kind that is too short for a sequence."""
    texts: dict[str, list[str]] = defaultdict(list)
    for record in records(text):
        texts[kind_of(record["s"])].append(record["text"])
    texts["questions"] = [as_lines(record["messages"]) for record in records(chat)]
    tokens = {}
    for kind in (*MIX, "questions"):
        random.shuffle(texts[kind])
        if sum(len(each) for each in texts[kind]) < 8 * length:
            raise SystemExit(f"too little text of the kind {kind!r} for sequences of {length} tokens")
        tokens[kind] = np.concatenate([np.array([1, *tokenizer.encode(each), 2], dtype=np.int32) for each in texts[kind]])
    held_out = np.concatenate([tokens[kind][: len(tokens[kind]) // HELD_OUT] for kind in MIX])
    train = [tokens[kind][len(tokens[kind]) // HELD_OUT :] for kind in MIX] + [tokens["questions"]]
    sizes = torch.tensor([len(each) for each in train], device=DEVICE)
    starts = sizes.cumsum(0) - sizes
    ids = torch.from_numpy(np.concatenate(train)).to(DEVICE)
    weights = torch.tensor([*MIX.values(), 0.0], device=DEVICE)
    return TrainingText(ids, starts, sizes, weights, torch.from_numpy(held_out).to(DEVICE), rows, length)


class Float32Muon(TorchFunctionMode):
    """Computes Muon's products in float32: in bfloat16 they take five minutes a step on a CPU without bf16 instructions."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)  # a copy like the bf16 one, because it is divided in place
        return func(*args, **(kwargs or {}))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices between embeddings and head, AdamW for the rest."""
    matrices = [each for name, each in model.named_parameters() if each.ndim == 2 and "embed" not in name]
    muon = {id(each) for each in matrices}
    rest = [each for each in model.parameters() if id(each) not in muon]
    return [
        torch.optim.Muon(matrices, lr=MUON, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=ADAMW, betas=(0.9, 0.95), weight_decay=0.0, fused=DEVICE.type == "cuda"),
    ]


def rate(step: int, progress: float) -> float:
    """Return the share of the full learning rate: warm-up, constant, then linear decay over the second half."""
    return min(1.0, (step + 1) / WARM_UP) * (1.0 if progress < 0.5 else max(0.02, (1 - progress) / 0.5))


def train(model: LlamaForCausalLM, text: TrainingText, minutes: float, steps: int | None) -> None:
    """Train for `minutes`, or for `steps` if set."""

    def plain_loss(ids: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    loss_of: Callable[[Tensor], Tensor] = torch.compile(plain_loss) if DEVICE.type == "cuda" else plain_loss
    both = optimizers(model)
    full = [[group["lr"] for group in each.param_groups] for each in both]
    loss_of(text.batch(0.0)).backward()  # compiled before the clock runs
    model.zero_grad()
    print(f"step 0: held out {held_out_loss(loss_of, text):.3f}", flush=True)
    begin, step = time.monotonic(), 0
    while (progress := step / steps if steps else (time.monotonic() - begin) / (60 * minutes)) < 1:
        for each, rates in zip(both, full, strict=True):
            for group, full_rate in zip(each.param_groups, rates, strict=True):
                group["lr"] = full_rate * rate(step, progress)
        loss = loss_of(text.batch(progress))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with nullcontext() if DEVICE.type == "cuda" else Float32Muon():
            for each in both:
                each.step()
                each.zero_grad(set_to_none=True)
        step += 1
        if step % 250 == 0 or step == steps:
            print(f"step {step}: loss {loss.item():.3f}, held out {held_out_loss(loss_of, text):.3f}", flush=True)


@torch.no_grad()
def held_out_loss(loss_of: Callable[[Tensor], Tensor], text: TrainingText) -> float:
    """Return the mean loss in nats per token."""
    return fmean(loss_of(ids).item() for ids in text.held_out_batches())


def write(model: LlamaForCausalLM, config: dict[str, Any], out: Path) -> None:
    """Write OUT/bf16, and OUT/base in NF4 like the bundled base."""
    bf16, nf4 = out / "bf16", out / "base"
    for folder in (bf16, nf4):
        folder.mkdir(parents=True)
    generation = read_json(BUNDLED / "base" / "generation_config.json")
    state = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    write_shards(state.items(), bf16)
    write_small_files(bf16, config, generation, BUNDLED / "base", BUNDLED / "base", stored="bf16")
    write_shards(quantize_nf4(Base.read(bf16), DEVICE.type), nf4)
    write_small_files(nf4, config, generation, BUNDLED / "base", BUNDLED / "base", stored="nf4")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chat", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--steps", type=int, help="number of steps, instead of --minutes")
    parser.add_argument("--rows", type=int, default=256, help="sequences per step")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence")
    chosen = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = {key: value for key, value in read_json(BUNDLED / "base" / "config.json").items() if key != "quantization_config"}
    model: Any = LlamaForCausalLM(LlamaConfig(**config)).float()
    model = model.to(DEVICE)
    text = read(chosen.text, chosen.chat, ModelTokenizer.read(BUNDLED / "base", None), chosen.rows, chosen.length)
    train(model, text, chosen.minutes, chosen.steps)
    write(model, config, chosen.out)


if __name__ == "__main__":
    main()
