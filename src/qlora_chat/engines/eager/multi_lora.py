"""Chats with different LoRAs in one pass of torch's: each applied, unmerged, to its own rows.

Scope: the products of such a pass, for cards, and for CPUs without a compiler. Which chat has which is in the cache's
slots. Belongs to the engine's thread.

Shapes: N tokens in the pass, r adapter rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import linear

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.models.weights.llama import Layer, Linear, LlamaWeights, fastest_on_cpu


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter on its device. Compared by identity: an adapter that is loaded again is another one."""

    parts: Mapping[str, tuple[Tensor, Tensor]]
    """A (r, in) and B (out, r), scaled, by the linear's Hugging Face name."""


@dataclass(frozen=True)
class Switched:
    """A product, and beside it the LoRAs of the rows that have one. `parts` names the linears it is fused from."""

    base: Linear
    parts: tuple[tuple[str, slice], ...]
    """(name, its columns of the output)."""
    switching: MultiLoraForward

    def __call__(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for lora, rows in self.switching.rows:
            for name, columns in self.parts:
                if pair := lora.parts.get(name):
                    y[rows, columns] += linear(linear(x[rows], pair[0]), pair[1])
        return y


class MultiLoraForward:
    """The plain pass, each chat through the adapter that its slot names."""

    def __init__(self, weights: LlamaWeights, wide: int, cache: KVCache) -> None:
        """`wide` is the feed-forward size."""
        self.rows: Sequence[tuple[Lora, slice]] = ()
        """Whose rows are which, in the pass that is running."""
        self._cache = cache
        self._forward = Forward(_switchable(fastest_on_cpu(weights), wide, self), cache)

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits as Forward gives them."""
        rows, begin = [], 0
        for span in spans:
            end = begin + len(span.ids)
            lora = self._cache.slots[span.slot].adapter
            if isinstance(lora, Lora):
                rows.append((lora, slice(begin, end)))
            begin = end
        self.rows = _joined(rows)
        return self._forward(spans)

    copies = 1.0

    @staticmethod
    def hold(parts: Mapping[str, tuple[Tensor, Tensor]], scaling: float) -> Lora:
        """An adapter for slots to name; A and B by the linear's Hugging Face name."""
        return Lora({name: (a, b * scaling) for name, (a, b) in parts.items()})


def _joined(rows: Sequence[tuple[Lora, slice]]) -> list[tuple[Lora, slice]]:
    """Neighbours with the same adapter as one run of rows."""
    joined: list[tuple[Lora, slice]] = []
    for lora, part in rows:
        if joined and joined[-1][0] is lora and joined[-1][1].stop == part.start:
            joined[-1] = (lora, slice(joined[-1][1].start, part.stop))
        else:
            joined.append((lora, part))
    return joined


def _switchable(weights: LlamaWeights, wide: int, switching: MultiLoraForward) -> LlamaWeights:
    """The same weights with every layer's products open to adapters; `wide` is the feed-forward size."""
    shape = weights.shape
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    everything = slice(None)

    def layer(index: int, plain: Layer) -> Layer:
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        qkv = (
            (attention + "q_proj", slice(queries)),
            (attention + "k_proj", slice(queries, queries + keys)),
            (attention + "v_proj", slice(queries + keys, queries + 2 * keys)),
        )
        gate_up = ((mlp + "gate_proj", slice(wide)), (mlp + "up_proj", slice(wide, 2 * wide)))
        return replace(
            plain,
            qkv=Switched(plain.qkv, qkv, switching),
            attention_out=Switched(plain.attention_out, ((attention + "o_proj", everything),), switching),
            gate_up=Switched(plain.gate_up, gate_up, switching),
            mlp_down=Switched(plain.mlp_down, ((mlp + "down_proj", everything),), switching),
        )

    return replace(weights, layers=tuple(layer(index, plain) for index, plain in enumerate(weights.layers)))
