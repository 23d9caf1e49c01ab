"""Perplexity of a model on held-out text.

Scope: a loaded model and passages in, one report out. Uses the forward pass that chats use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu import CpuForward, compiled_forward
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models import LoadedModel, Notify
from qlora_chat.models.adapter.merge_loss import HeldOut, Passage

PASS_TOKENS = 256
"""Tokens per forward pass, which bounds the memory of their logits."""


@dataclass(frozen=True)
class PerplexityReport:
    """exp of the mean negative log-likelihood of the counted tokens; its fields are those of perplexity.json."""

    model: str
    base: str
    adapter: str | None
    precision: str
    device: str
    text: str
    tokens: int
    nats: float
    """Mean per token."""
    perplexity: float
    passages: tuple[float, ...]
    """Mean nats of each passage, in order."""


def measure(model: LoadedModel, text: HeldOut, name: str, notify: Notify = lambda _: None) -> PerplexityReport:
    """Measure a loaded model on held-out text."""
    cache = KVCache(model.weights, slots=1)
    forward = compiled_forward(model.weights, cache, notify) or Forward(model.weights, cache)
    sums = [float(_nats(forward, passage).sum()) for passage in text.passages]
    counts = [len(passage.rows) for passage in text.passages]
    mean = sum(sums) / sum(counts)
    each = tuple(round(total / count, 4) for total, count in zip(sums, counts, strict=True))
    info = model.info
    return PerplexityReport(
        info.name, info.base, info.adapter, info.precision, info.device, name, sum(counts), round(mean, 5),
        round(math.exp(min(mean, 700.0)), 4), each,
    )  # fmt: skip


def _nats(forward: Forward | CpuForward, passage: Passage) -> Tensor:
    """Negative log-likelihood of each counted token, (N,) float32."""
    inputs, counted = passage.inputs, passage.counted[1:]
    losses = []
    for begin in range(0, len(inputs), PASS_TOKENS):
        part = inputs[begin : begin + PASS_TOKENS]
        logits = forward([Span(0, begin, part, logits=len(part))])  # (T, V)
        targets = torch.tensor(passage.ids[begin + 1 : begin + 1 + len(part)], device=logits.device)
        counts = torch.tensor(counted[begin : begin + len(part)], device=logits.device)
        losses.append(cross_entropy(logits, targets, reduction="none")[counts].cpu())
    return torch.cat(losses)
