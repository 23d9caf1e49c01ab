"""Whether what is about to be timed computes the right thing.

Scope: the engine's own pass against a plain one on the same values; a quick wrong path must not get a figure. Runs in a
process of its own, so that nothing of it disturbs a clock.

Bounds: over 256 greedy tokens of the demo, each is the plain path's best or within GAP of it in logits (bf16 rounds
logits that lie closer); on a shape, logits within RELATIVE and KL of float32 arithmetic, or as near to it as the plain
bf16 pass is: random weights amplify rounding, and no bf16 path can be nearer to another than both are to the truth. Keys and
values in 8 bits are rounded COARSER times as far as in bf16, and nothing else is: that much more is allowed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qlora_chat.benchmark import Check, Subject
from qlora_chat.benchmark.subjects import Demo, RandomShape, opened
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.weights.llama import LlamaWeights
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

TOKENS = 256
GAP = 0.25
RELATIVE, KL = 2e-2, 1e-4
COARSER = 4
"""Rounding in int8 by a head's largest element, about 2.7 times its rms of 128: 0.6 %, rms; bf16: 0.16 %."""
LAYERS_ON_CPU = 4
"""Depth of the check on a CPU: two 7Bs, one of them in bf16, would not fit beside each other."""


def check(subject: Subject) -> Check:
    """Compare; the caller decides what a failure means."""
    if subject.name == "demo":
        demo = opened(subject)
        assert isinstance(demo, Demo)
        return _greedy_tokens(demo, subject)
    if opened(subject).device.type == "cpu" and (subject.layers or LAYERS_ON_CPU + 1) > LAYERS_ON_CPU:
        subject = replace(subject, layers=LAYERS_ON_CPU)
    shape = opened(subject)
    assert isinstance(shape, RandomShape)
    return _logits(shape, subject)


def _greedy_tokens(demo: Demo, subject: Subject) -> Check:
    """The engine's greedy answer, token by token before the eyes of Transformers in float32 on the same merged weights."""
    prompt = demo.prompt(128, seed=0)
    engine = LocalEngine(demo.ours, slots=1, kv_cache_dtype=subject.kv_cache_dtype)
    stream = engine.stream(Prompt("", prompt), Sampling(temperature=0.0, max_new_tokens=TOKENS), Stops())
    ids = [piece.token_id for piece in stream if piece.token_id is not None]
    engine.close()
    model = demo.original().float()
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ids]], device=demo.device)).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(ids, device=demo.device)[:, None])[:, 0]
    gaps = logits.max(dim=-1).values - chosen
    worst = gaps.max().item()
    figures = {"tokens": len(ids), "the plain path's best": int((gaps == 0).sum()), "largest gap": round(worst, 4)}
    what = f"greedy tokens of the engine before Transformers in float32; allowed gap to the best logit {GAP}"
    return Check(worst <= GAP and len(ids) == TOKENS, what, figures)


def _logits(shape: RandomShape, subject: Subject) -> Check:
    """A prompt at once, in chunks, and the next tokens of one chat and of four, each against a plain prefill of the whole."""
    engine = LocalEngine(shape.ours, slots=4, kv_cache_dtype=subject.kv_cache_dtype)
    ids = [list(shape.prompt(length, seed=length)) for length in (190, 140, 70, 33)]
    rows, texts = _engine_rows(engine.forward, ids)
    engine.close()
    plain, exact = (_prefilled(shape.plain(dtype), texts) for dtype in (torch.bfloat16, torch.float32))
    ours, theirs = _distance(rows, exact), _distance(plain, exact)
    same = (rows.argmax(-1) == exact.argmax(-1)).float().mean().item()
    figures = {
        "layers": shape.shape.layers, "rows": len(texts), "relative": round(ours[0], 5), "kl": float(f"{ours[1]:.2e}"),
        "plain bf16 relative": round(theirs[0], 5), "plain bf16 kl": float(f"{theirs[1]:.2e}"),
        "same first choice": round(same, 3),
    }  # fmt: skip
    coarser = COARSER if subject.kv_cache_dtype == "int8" else 1
    what = (
        "logits of the engine's pass against the plain pass in float32 over the weights as held, the worst row; allowed: "
        f"relative {RELATIVE} and KL {KL}, or no farther than the plain pass in bf16 is"
        f"{f', times {coarser} (KL: its square) for int8 keys and values' if coarser > 1 else ''}"
    )
    near = ours[0] <= coarser * max(RELATIVE, theirs[0]) and ours[1] <= coarser**2 * max(KL, theirs[1])
    return Check(near, what, figures)


def _prefilled(weights: LlamaWeights, texts: list[list[int]]) -> Tensor:
    """Logits (rows, V) after each text, from the plain pass over the whole of it."""
    plain = Forward(weights, KVCache(weights, 1))
    return torch.cat([plain([Span(0, 0, text)]) for text in texts])


def _distance(rows: Tensor, expected: Tensor) -> tuple[float, float]:
    """The worst row's relative error and KL(expected || rows), in nats."""
    relative = ((rows - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
    return relative, _kl(expected, rows).max().item()


def _engine_rows(forward: Any, ids: list[list[int]]) -> tuple[Tensor, list[list[int]]]:
    """Logits (rows, V) of the engine's pass in all its uses, and the text that each row stands after."""
    first = ids[0]
    rows = [forward([Span(0, 0, first)]).clone()]
    texts = [first]
    forward([Span(1, 0, first[:50])])
    rows.append(forward([Span(1, 50, first[50:])]).clone())
    texts.append(first)
    for slot, each in enumerate(ids):
        forward([Span(slot, 0, each[:-3])])
    for back in (3, 2):
        rows.append(forward([Span(slot, len(each) - back, [each[-back]]) for slot, each in enumerate(ids)]).clone())
        texts += [each[: len(each) - back + 1] for each in ids]
    rows.append(forward([Span(2, len(ids[2]) - 1, [ids[2][-1]])]).clone())
    texts.append(ids[2])
    return torch.cat(rows).float(), texts


def _kl(expected: Tensor, got: Tensor) -> Tensor:
    """KL(expected || got) of each row, in nats."""
    p, q = expected.double().log_softmax(-1), got.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
