"""Loss of an 8-bit head on a CPU: the bundled demo in 4 bits with its unmerged adapter, head in 8 bits against bf16.

    python bench/cpu/int8_head.py [FILE]

On the answers of models/adapter/merge_loss.py's dialogue, and on the text of FILE if set, in windows of 512: KL from the bf16
head in nats per token, agreement of the most likely token, and perplexity of both. Prints JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from qlora_chat.benchmark.environment import print_report
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu import build, forward
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.merge_loss import builtin_dialogues
from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import Adapter
from qlora_chat.models.weights.llama import build as weights_from

WINDOW = 512


def passes() -> Iterator[forward.CpuForward]:
    """With the head in bf16, then in 8 bits."""
    folder = BUNDLED / "base"
    weights = weights_from(
        Checkpoint(folder),
        Base.read(folder).shape,
        torch.device("cpu"),
        adapter=Adapter.read(AdapterFolder.read(BUNDLED / "adapter")),
    )
    library = build.library(print)
    assert library, "the compiled pass cannot be had here"
    decide = forward.is_nf4
    for eight in (False, True):
        forward.is_nf4 = lambda _, eight=eight: eight
        yield forward.CpuForward(library, weights, KVCache(weights, 1))
    forward.is_nf4 = decide


def compared(pair: list[forward.CpuForward], windows: list[tuple[list[int], list[bool]]]) -> dict[str, float]:
    """Over the tokens that count: KL, agreement, both perplexities."""
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    for ids, counts in windows:
        p, q = (each([Span(0, 0, ids[:-1], logits=len(ids) - 1)]).double().log_softmax(-1) for each in pair)
        keep = torch.tensor(counts[: len(ids) - 1])
        target = torch.tensor(ids[1:])[:, None]
        rows = ((p.exp() * (p - q)).sum(-1), (p.argmax(-1) == q.argmax(-1)).double(), -p.gather(1, target)[:, 0],
                -q.gather(1, target)[:, 0])  # fmt: skip
        sums += torch.stack([row[keep].sum() for row in rows])
        count += int(keep.sum())
    kl, same, exact, eight = (sums / count).tolist()
    perplexities = [round(float(torch.tensor(each).exp()), 4) for each in (exact, eight)]
    return {"tokens": count, "KL": float(f"{kl:.2e}"), "same most likely token": round(same, 4),
            "perplexity, bf16": perplexities[0], "perplexity, 8 bits": perplexities[1]}  # fmt: skip


def main() -> None:
    tokenizer = ModelTokenizer.read(BUNDLED / "base", bos_id=1)
    pair = list(passes())
    passages = builtin_dialogues(tokenizer, 1, WINDOW).passages
    results = {"dialogues": compared(pair, [(each.inputs, list(each.counted[1:])) for each in passages])}
    if len(sys.argv) > 1:
        ids = tokenizer.encode(Path(sys.argv[1]).read_text()[:60_000])
        windows = [[1, *ids[at : at + WINDOW]] for at in range(0, min(len(ids), 20 * WINDOW), WINDOW)]
        results[Path(sys.argv[1]).name] = compared(pair, [(each, [True] * len(each)) for each in windows])
    print_report("int8_head", results)


if __name__ == "__main__":
    main()
