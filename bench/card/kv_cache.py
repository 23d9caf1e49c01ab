"""Quality of an int8 KV cache on a card: perplexity of held-out answers against 16 bits, through the engine's own kernels.

    PYTHONPATH=src python bench/card/kv_cache.py [--precision nf4] [--rows 1] [--data FILE.jsonl] [--base B --adapter A]

Teacher-forced: users' turns are prefilled, each token of an answer goes through the decode graph, --rows of them per step. Both
models see the same tokens, so that no luck is in the difference. Prints JSON; exits with 1 where 8 bits make perplexity differ
by more than 0.5 %. Without --data the text is models/adapter/merge_loss.py's dialogues, which no model was trained on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from qlora_chat.benchmark.environment import print_report
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import slot_bytes
from qlora_chat.engines.cuda import open_cuda
from qlora_chat.engines.cuda.decode.rows import BUCKETS, Row
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.evaluation.held_out import read_text
from qlora_chat.models.adapter.merge_loss import HeldOut, Passage, builtin_dialogues
from qlora_chat.models.load import load
from qlora_chat.prompt import find_prompt_format
from qlora_chat.settings import KVCacheDtype, ModelSettings, cache_folder

MOST_DIFFERENCE = 0.005
KINDS: tuple[KVCacheDtype, ...] = ("auto", "int8")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def answer_logits(scheduler: CudaScheduler, passage: Passage, rows: int) -> Tensor:
    """Logits (N, V) float32 before each counted token."""
    logits, inputs = [], passage.inputs
    for counts, run in groupby(range(len(inputs)), key=lambda at: passage.counted[at + 1]):
        run_of = list(run)
        size = rows if counts else scheduler.limits.pass_tokens
        for begin in range(0, len(run_of), size):
            part = run_of[begin : begin + size]
            if counts:
                logits.append(row_logits(scheduler, inputs, part))
            else:
                scheduler.begin_prefill([Span(0, part[0], [inputs[at] for at in part], logits=0)]).run()
    return torch.cat(logits)


def row_logits(scheduler: CudaScheduler, inputs: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Logits of a step over neighbouring tokens of one chat."""
    decoder = scheduler.decoder
    decoder.set_rows([Row(0, at, inputs[at]) for at in positions])
    decoder.finish(decoder.start(len(positions)))
    return decoder.logits[: len(positions)].clone()


def compared(schedulers: Sequence[CudaScheduler], text: HeldOut, rows: int) -> dict[str, Any]:
    """Perplexity of both, and how far the second strays from the first."""
    nats, kl, agreed = [0.0, 0.0], 0.0, 0
    for passage in text.passages:
        if not passage.rows:
            continue
        first, second = (answer_logits(each, passage, rows) for each in schedulers)
        targets = torch.tensor(passage.targets, device=first.device)
        for index, logits in enumerate((first, second)):
            nats[index] += float(cross_entropy(logits, targets, reduction="sum"))
        kl += float(kl_div(second.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="sum"))
        agreed += int((first.argmax(-1) == second.argmax(-1)).sum())
    count = len(text.targets)
    sixteen, eight = (math.exp(each / count) for each in nats)
    return {
        "tokens": count, "perplexity, 16 bits": round(sixteen, 5), "perplexity, 8 bits": round(eight, 5),
        "relative difference": round(eight / sixteen - 1, 6), "kl": float(f"{kl / count:.2e}"),
        "top1": round(agreed / count, 5),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="bf16", choices=("bf16", "nf4", "auto"))
    parser.add_argument("--rows", type=int, default=1, choices=BUCKETS, help="tokens of an answer in a step")
    parser.add_argument("--data", help="held-out dialogues as `train` takes them, or .txt")
    parser.add_argument("--tokens", type=int, default=20_000, help="of --data, so many count")
    parser.add_argument("--base")
    parser.add_argument("--adapter")
    chosen = parser.parse_args()
    read = read_text(chosen.data, say) if chosen.data else None
    model = "auto" if chosen.base else "demo"
    settings = ModelSettings(model, chosen.base, chosen.adapter, precision=chosen.precision, device="cuda")
    models = [load(settings, say) for _ in KINDS]  # each cache has weights of its own: the kernels lay them out anew
    opened = [open_cuda(each.weights, 1, cache_folder(), kind) for each, kind in zip(models, KINDS, strict=True)]
    sizes = [slot_bytes(each.weights, cache.dtype) for each, (_, cache) in zip(models, opened, strict=True)]
    info, tokenizer = models[0].info, models[0].tokenizer
    if read:
        text = read.tokenize(tokenizer, models[0].end_id, info.window, chosen.tokens, find_prompt_format(info.prompt_format))
    else:
        text = builtin_dialogues(tokenizer, tokenizer.bos_id, info.window)
    figures = compared([scheduler for scheduler, _ in opened], text, chosen.rows)
    ok = abs(figures["relative difference"]) <= MOST_DIFFERENCE
    print_report("kv_cache", {
        "card": torch.cuda.get_device_name(), "model": info.name, "precision": info.precision, "rows a step": chosen.rows,
        "text": chosen.data or "models/adapter/merge_loss.py",
        "cache bytes a chat": {"16 bits": sizes[0], "8 bits": sizes[1]}, **figures,
        "within 0.5 %": ok,
    })  # fmt: skip
    sys.exit(not ok)


if __name__ == "__main__":
    main()
