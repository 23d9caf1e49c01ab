"""An engine's greedy answer before torch in float32 over the values that the engine was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import NF4, Adapter, Beside, Dense, Layer, LlamaWeights, WithAdapter, build


def plain_pass(engine: LocalEngine, adapter: Path | None) -> Forward:
    """Torch's pass over the engine's model, read again from its folder, with an adapter beside it or none."""
    assert engine._model.base
    tensors, weights = Checkpoint(engine._model.base.folder), engine._model.weights
    held = Adapter.read(adapter) if adapter else None
    plain = in_float32(build(tensors, weights.shape, weights.device, adapter=held))
    return Forward(plain, KVCache(plain, 1))


def behind(forward: Forward, prompt: Sequence[int], said: Sequence[int]) -> torch.Tensor:
    """(tokens said,): logits by which each lies behind the best one there."""
    logits = forward([Span(0, 0, [*prompt, *said[:-1]], logits=len(said))])
    chosen = logits.gather(1, torch.tensor(said, device=logits.device)[:, None])[:, 0]
    return logits.max(-1).values - chosen


def in_float32(weights: LlamaWeights) -> LlamaWeights:
    layers = tuple(Layer(each.attention_norm.float(), _exact(each.qkv), _exact(each.attention_out), each.mlp_norm.float(),
                         _exact(each.gate_up), _exact(each.mlp_down)) for each in weights.layers)  # fmt: skip
    ends = weights.embeddings.float(), weights.norm.float(), _exact(weights.head)
    return replace(weights, embeddings=ends[0], layers=layers, norm=ends[1], head=ends[2], dtype=torch.float32)


def _exact(product: Any) -> Any:
    match product:
        case Beside(parts):
            return Beside(tuple(_exact(part) for part in parts))
        case WithAdapter(base, a, b, scaling):
            return WithAdapter(_exact(base), a.float(), b.float(), scaling)
        case NF4():
            return Dense(product.dequantised().float())
    return Dense(product.weight.float())
