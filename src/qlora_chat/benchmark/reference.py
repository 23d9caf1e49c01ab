"""Reference computations for checks: an engine's model in float32 through torch, and distances between logits.

Scope: weights and logits. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import Adapter, Dense, Layer, LlamaWeights, Stacked, WithAdapter, build
from qlora_chat.models.weights.nf4 import NF4

MAX_GAP = 0.25
"""Logits by which a greedy token may be below the best one in float32: bf16 rounds logits that are closer."""


def reference_forward(engine: LocalEngine, adapter: Path | None) -> Forward:
    """Return torch's float32 pass over the engine's base, read again from its folder, with or without an adapter."""
    assert engine._model.base
    tensors, weights = Checkpoint(engine._model.base.folder), engine._model.weights
    plain = in_float32(
        build(tensors, weights.shape, weights.device, adapter=Adapter.read(AdapterFolder.read(adapter)) if adapter else None)
    )
    return Forward(plain, KVCache(plain, 1))


def greedy_gaps(forward: Forward, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Return for each generated token the best logit at its position minus its own, (generated,)."""
    return logit_gaps(forward([Span(0, 0, [*prompt, *generated[:-1]], logits=len(generated))]), generated)


def logit_gaps(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the best logit of each row minus that of its id; (N, V), N ids -> (N,)."""
    of_ids = logits.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    return logits.max(dim=-1).values - of_ids


def relative_error(rows: Tensor, expected: Tensor) -> float:
    """Return the worst row's relative error; (N, V) each."""
    return ((rows - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def kl_divergence(expected: Tensor, rows: Tensor) -> float:
    """Return the worst row's KL(expected || rows), in nats; (N, V) each."""
    p, q = expected.double().log_softmax(-1), rows.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).max().item()


def in_float32(weights: LlamaWeights) -> LlamaWeights:
    """Return the weights dequantized to float32."""
    ends = weights.embeddings.float(), weights.norm.float(), _exact(weights.head)
    layers = tuple(map(_exact_layer, weights.layers))
    return replace(weights, embeddings=ends[0], layers=layers, norm=ends[1], head=ends[2], dtype=torch.float32)


def _exact_layer(layer: Layer) -> Layer:
    norms = {name: value.float() for name, value in vars(layer).items() if isinstance(value, Tensor)}
    return replace(layer.with_products(map(_exact, layer.products)), **norms)


def _exact(product: Any) -> Any:
    match product:
        case Stacked(parts):
            return Stacked(tuple(_exact(part) for part in parts))
        case WithAdapter(base, a, b, scaling):
            return WithAdapter(_exact(base), a.float(), b.float(), scaling)
    weight = product.dequantize() if isinstance(product, NF4) else product.weight
    return Dense(weight.float(), None if product.bias is None else product.bias.float())
