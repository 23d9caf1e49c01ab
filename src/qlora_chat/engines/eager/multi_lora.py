"""Multi-LoRA in the eager pass: each chat's rows go through the adapter that its KV-cache slot names, unmerged.

Scope: the eager backend's ForwardPass, for cards without the CUDA kernels and CPUs without a compiler. Belongs to the
engine's thread.

Shapes: N tokens in the pass, r adapter rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import linear

from qlora_chat.engines.core.forward_pass import LoraMatrices, Span, adapter_runs, fused_names
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
            self.lora_rows = adapter_runs(spans, self._lora_of)
        return self._forward(spans)

    def pack(self, matrices: LoraMatrices, scaling: float) -> Lora:
        """Adapter for slots to name."""
        if not self._adapted:
            self._forward.weights = _with_adapters(self._forward.weights, self)
            self._adapted = True
        return Lora({name: (a, b * scaling) for name, (a, b) in matrices.items()})

    def _lora_of(self, slot: int) -> Lora | None:
        adapter = self._cache.slots[slot].adapter
        return adapter if isinstance(adapter, Lora) else None


def _with_adapters(weights: LlamaWeights, owner: MultiLoraForward) -> LlamaWeights:
    """The same weights with adapters applied after every layer's products."""
    shape = weights.shape
    q, k, up = shape.queries, shape.keys, shape.feed_forward
    everything = (slice(None),)
    columns = ((slice(q), slice(q, q + k), slice(q + k, None)), everything, (slice(up), slice(up, None)), everything)

    def adapted(index: int, layer: Layer) -> Layer:
        parts = [tuple(zip(*each, strict=True)) for each in zip(fused_names(index), columns, strict=True)]
        pairs = zip(layer.products, parts, strict=True)
        return layer.with_products(AdaptedLinear(product, part, owner) for product, part in pairs)

    return replace(weights, layers=tuple(adapted(index, layer) for index, layer in enumerate(weights.layers)))
