"""Multi-LoRA in the eager pass: each chat's rows go through the adapter that its KV-cache slot names, unmerged.

Scope: the eager backend's ForwardPass, for cards without the CUDA kernels and CPUs without a compiler. Belongs to the
engine's thread.

Shapes: N tokens in the pass, r adapter rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from qlora_chat.engines.core.forward_pass import LoraMatrices, Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models.weights.llama import Layer, Linear, LlamaWeights


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter on its device. Compared by identity: an adapter that is loaded again is another one."""

    matrices: LoraMatrices
    """With B scaled."""


@dataclass(frozen=True)
class AdaptedLinear:
    """A product plus the LoRAs of the rows that have one."""

    base: Linear
    parts: tuple[tuple[str, slice], ...]
    """(name, output columns) of each linear that the product is fused from."""
    owner: MultiLoraForward

    def __call__(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for lora, rows in self.owner.lora_rows:
            for name, columns in self.parts:
                if pair := lora.matrices.get(name):
                    y[rows, columns] += linear(linear(x[rows], pair[0]), pair[1])
        return y


class MultiLoraForward:
    """The eager pass with adapters; its products stay plain until the first adapter is packed."""

    copies = 1.0
    backend_name = "torch"

    def __init__(self, weights: LlamaWeights, cache: KVCache) -> None:
        self.lora_rows: Sequence[tuple[Lora, slice]] = ()
        """Adapted rows of the running pass."""
        self._cache = cache
        self._forward = Forward(weights, cache)
        self._adapted = False

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits as ForwardPass returns them."""
        if self._adapted:
            self.lora_rows = self._lora_rows(spans)
        return self._forward(spans)

    def pack(self, matrices: LoraMatrices, scaling: float) -> Lora:
        """Adapter for slots to name."""
        if not self._adapted:
            self._forward.weights = _with_adapters(self._forward.weights, self)
            self._adapted = True
        return Lora({name: (a, b * scaling) for name, (a, b) in matrices.items()})

    def _lora_rows(self, spans: Sequence[Span]) -> list[tuple[Lora, slice]]:
        """Rows by adapter; neighbours with the same adapter share one slice."""
        rows: list[tuple[Lora, slice]] = []
        end = 0
        for span in spans:
            start, end = end, end + len(span.ids)
            lora = self._cache.slots[span.slot].adapter
            if not isinstance(lora, Lora):
                continue
            if rows and rows[-1][0] is lora and rows[-1][1].stop == start:
                start = rows.pop()[1].start
            rows.append((lora, slice(start, end)))
        return rows


def _with_adapters(weights: LlamaWeights, owner: MultiLoraForward) -> LlamaWeights:
    """The same weights with adapters applied after every layer's products."""
    shape = weights.shape
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    x = torch.zeros(1, shape.hidden, device=weights.device, dtype=weights.dtype)
    feed_forward = weights.layers[0].gate_up(x).shape[-1] // 2
    everything = slice(None)

    def adapted(index: int, layer: Layer) -> Layer:
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        qkv = (
            (attention + "q_proj", slice(q)),
            (attention + "k_proj", slice(q, q + k)),
            (attention + "v_proj", slice(q + k, q + 2 * k)),
        )
        gate_up = ((mlp + "gate_proj", slice(feed_forward)), (mlp + "up_proj", slice(feed_forward, None)))
        return replace(
            layer,
            qkv=AdaptedLinear(layer.qkv, qkv, owner),
            attention_out=AdaptedLinear(layer.attention_out, ((attention + "o_proj", everything),), owner),
            gate_up=AdaptedLinear(layer.gate_up, gate_up, owner),
            mlp_down=AdaptedLinear(layer.mlp_down, ((mlp + "down_proj", everything),), owner),
        )

    return replace(weights, layers=tuple(adapted(index, layer) for index, layer in enumerate(weights.layers)))
