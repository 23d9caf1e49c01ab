"""Check that the timed path computes the right thing: a fast wrong path must not get a figure.

Scope: the engine's own pass against a plain one over the same values. Runs in a process of its own, so that its memory and
threads disturb no clock.

Bounds: over 256 greedy tokens of the demo, each is the reference's best or within MAX_GAP of it in logits. For a shape,
logits are within MAX_RELATIVE and MAX_KL of float32 arithmetic, or as near to it as the plain bf16 pass: random weights
amplify rounding, and no bf16 path can be nearer to another than both are to the truth. Keys and values in 8 bits are rounded
INT8_KV_FACTOR times as coarsely as in bf16 and nothing else is: that much more is allowed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qlora_chat.benchmark import Check, Subject
from qlora_chat.benchmark.reference import (
    MAX_GAP,
    greedy_gaps,
    kl_divergence,
    logit_gaps,
    reference_forward,
    relative_error,
)
from qlora_chat.benchmark.subjects import Demo, RandomShape
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.smollm2 import SMOLLM2
from qlora_chat.models.weights.llama import LlamaWeights
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

TOKENS = 256
MAX_RELATIVE, MAX_KL = 2e-2, 1e-4
INT8_KV_FACTOR = 4
"""Rounding in int8 by a head's largest element, about 2.7 times its rms of 128: 0.6 %, rms; bf16: 0.16 %."""
MAX_LAYERS_ON_CPU = 4
"""Depth of the check on a CPU: two 7Bs, one of them in bf16, would not fit into memory."""


def check_subject(subject: Subject) -> Check:
    """Compare; the caller decides the consequence of a failure."""
    if subject.name in ("demo", SMOLLM2):
        return _check_greedy_tokens(Demo(subject), subject)
    shape = RandomShape(subject)
    if shape.device.type == "cpu" and (subject.layers or MAX_LAYERS_ON_CPU + 1) > MAX_LAYERS_ON_CPU:
        shape = RandomShape(replace(subject, layers=MAX_LAYERS_ON_CPU))
    return _check_logits(shape, subject)


def _check_greedy_tokens(demo: Demo, subject: Subject) -> Check:
    """Compare the engine's greedy answer token by token with a float32 pass over the same weights.

    Of the demo it is Transformers over its own merge; of smollm2 torch's pass, since Transformers merges onto the 16 bits.
    """
    prompt = demo.prompt(128, seed=0)
    engine = LocalEngine(demo.load, slots=1, kv_cache_dtype=subject.kv_cache_dtype)
    stream = engine.stream(Prompt("", prompt), Sampling(temperature=0.0, max_new_tokens=TOKENS), Stops())
    ids = [piece.token_id for piece in stream if piece.token_id is not None]
    engine.close()
    if subject.name == SMOLLM2:
        gaps = greedy_gaps(reference_forward(engine, demo.adapter if demo.is_exact else None), prompt, ids)
    else:
        model = demo.load_original().float()
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]], device=demo.device)).logits[0, len(prompt) - 1 : -1]
        gaps = logit_gaps(logits, ids)
    largest = gaps.max().item()
    figures = {"tokens": len(ids), "the plain path's best": int((gaps == 0).sum()), "largest gap": round(largest, 4)}
    what = f"greedy tokens of the engine against the same weights in float32; allowed gap to the best logit {MAX_GAP}"
    return Check(largest <= MAX_GAP and len(ids) == TOKENS, what, figures)


def _check_logits(shape: RandomShape, subject: Subject) -> Check:
    """Compare a whole prefill, a chunked one, and decode steps of one chat and of four with a plain prefill."""
    engine = LocalEngine(shape.load, slots=4, kv_cache_dtype=subject.kv_cache_dtype)
    ids = [list(shape.prompt(length, seed=length)) for length in (190, 140, 70, 33)]
    rows, texts = _engine_rows(engine.forward, ids)
    engine.close()
    bf16, exact = (_prefill(shape.plain(dtype), texts) for dtype in (torch.bfloat16, torch.float32))
    relative, kl = relative_error(rows, exact), kl_divergence(exact, rows)
    bf16_relative, bf16_kl = relative_error(bf16, exact), kl_divergence(exact, bf16)
    same = (rows.argmax(-1) == exact.argmax(-1)).float().mean().item()
    figures = {
        "layers": shape.shape.layers, "rows": len(texts), "relative": round(relative, 5), "kl": float(f"{kl:.2e}"),
        "plain bf16 relative": round(bf16_relative, 5), "plain bf16 kl": float(f"{bf16_kl:.2e}"),
        "same first choice": round(same, 3),
    }  # fmt: skip
    factor = INT8_KV_FACTOR if subject.kv_cache_dtype == "int8" else 1
    what = (
        "worst row of the engine's logits against the plain pass in float32 over the same weights; allowed: "
        f"relative {MAX_RELATIVE} and KL {MAX_KL}, or as far as the plain pass in bf16"
        f"{f', times {factor} (KL: its square) for int8 keys and values' if factor > 1 else ''}"
    )
    near = relative <= factor * max(MAX_RELATIVE, bf16_relative) and kl <= factor**2 * max(MAX_KL, bf16_kl)
    return Check(near, what, figures)


def _prefill(weights: LlamaWeights, texts: list[list[int]]) -> Tensor:
    """Return the plain pass's logits after each text, (texts, V)."""
    plain = Forward(weights, KVCache(weights, 1))
    return torch.cat([plain([Span(0, 0, text)]) for text in texts])


def _engine_rows(forward: Any, ids: list[list[int]]) -> tuple[Tensor, list[list[int]]]:
    """Return logits (rows, V) of the engine's pass in all its uses, and the text before each row."""
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
