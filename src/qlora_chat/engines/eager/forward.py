"""One eager PyTorch forward pass of a LLaMA over any mix of prefill and decode spans.

Scope: arithmetic only. The tokens of all chats go through the linear layers together; attention looks at each chat's own
slot. The reference for the compiled passes, and the fallback where none fits. Knows no sampling, stops or threads.

Shapes: N tokens in the pass, R spans (one a chat), H hidden, Q query heads, K key-value heads, D head dimension,
T tokens in a span, P positions seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.models.weights.llama import Layer, LlamaWeights, fastest_on_cpu


@dataclass(frozen=True)
class _Batch:
    """Spans laid end to end."""

    spans: Sequence[Span]
    offsets: list[int]
    """First of the N tokens of each span, and N at the end."""
    slots: Tensor  # (N,)
    positions: Tensor  # (N,)
    cos: Tensor  # (N, 1, D)
    sin: Tensor  # (N, 1, D)
    masks: list[Tensor | None]
    """For each span, the positions that a token may see, (T, P) bool; None where attention is causal or sees everything."""
    shared: tuple[slice | Tensor, Tensor] | None
    """For spans of one token each that share one attention: their slots (R) and a mask (R, 1, 1, P)."""


class Forward:
    """Runs spans through the weights, writing keys and values into the cache."""

    def __init__(self, weights: LlamaWeights, cache: KVCache) -> None:
        self.weights, self.cache = fastest_on_cpu(weights), cache
        shape = weights.shape
        angles = (torch.cat((each, each), dim=-1) for each in shape.rope_angles())  # (W, D)
        self._cos, self._sin = (each.to(weights.device, cache.dtype) for each in angles)
        self._grouped = shape.heads != shape.kv_heads
        self.always_share_attention = weights.device.type == "cuda"
        """True if decoding chats share one attention even at the price of copying scattered caches or padding short ones: a
        card gains more from fewer launches."""

    @torch.inference_mode()
    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last `logits` tokens of each span, one row a token in the spans' order: (rows, V) float32."""
        batch = self._batch(spans)
        ids = torch.tensor([each for span in spans for each in span.ids], device=self.weights.device)
        hidden = self.weights.embeddings[ids]  # (N, H)
        for index, layer in enumerate(self.weights.layers):
            hidden = hidden + self._attention(layer, index, hidden, batch)
            hidden = hidden + self._mlp(layer, hidden)
        rows = [end - back for span, end in zip(spans, batch.offsets[1:], strict=True) for back in range(span.logits, 0, -1)]
        if not rows:
            return hidden.new_empty((0, self.weights.shape.vocabulary), dtype=torch.float32)
        return self.weights.head(self._norm(hidden[rows], self.weights.norm)).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.weights.shape.norm_eps)

    def _mlp(self, layer: Layer, hidden: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._norm(hidden, layer.mlp_norm)).chunk(2, dim=-1)
        return layer.mlp_down(silu(gate) * up)

    def _attention(self, layer: Layer, index: int, hidden: Tensor, batch: _Batch) -> Tensor:
        shape = self.weights.shape
        qkv = layer.qkv(self._norm(hidden, layer.attention_norm)).view(len(hidden), -1, shape.head_dim).to(self.cache.dtype)
        rotated = self._rotate(self._normed(layer, qkv[:, : shape.heads + shape.kv_heads]), batch)  # (N, Q + K, D)
        queries, keys = rotated.split((shape.heads, shape.kv_heads), dim=1)
        self.cache.keys[index, batch.slots, :, batch.positions] = keys
        self.cache.values[index, batch.slots, :, batch.positions] = qkv[:, shape.heads + shape.kv_heads :]
        attended = self._attend_shared(index, queries, batch) if batch.shared else self._attend_each(index, queries, batch)
        return layer.attention_out(attended.reshape(len(hidden), -1).to(hidden.dtype))

    def _normed(self, layer: Layer, x: Tensor) -> Tensor:
        """Queries and keys (N, Q + K, D), each head normalized in the families that do so."""
        if layer.query_norm is None or layer.key_norm is None:
            return x
        queries, keys = x.split((self.weights.shape.heads, self.weights.shape.kv_heads), dim=1)
        parts = (self._norm(part, norm.to(part.dtype)) for part, norm in ((queries, layer.query_norm), (keys, layer.key_norm)))
        return torch.cat(tuple(parts), dim=1)

    @staticmethod
    def _rotate(x: Tensor, batch: _Batch) -> Tensor:
        """Rotary position embedding with the halves of a head as pairs, as Hugging Face stores LLaMA."""
        first, second = x.chunk(2, dim=-1)
        return x * batch.cos + torch.cat((-second, first), dim=-1) * batch.sin

    def _attend_each(self, index: int, queries: Tensor, batch: _Batch) -> Tensor:
        """One attention a chat over exactly its own positions, so that a batch cannot change it. Returns (N, Q, D)."""
        outputs = []
        for row, span in enumerate(batch.spans):
            seen = span.start + len(span.ids)
            own = queries[batch.offsets[row] : batch.offsets[row + 1]].transpose(0, 1).unsqueeze(0)  # (1, Q, T, D)
            attended = scaled_dot_product_attention(
                own,
                self.cache.keys[index, span.slot, :, :seen].unsqueeze(0),  # (1, K, P, D)
                self.cache.values[index, span.slot, :, :seen].unsqueeze(0),
                attn_mask=batch.masks[row],
                is_causal=span.start == 0 and len(span.ids) > 1,
                enable_gqa=self._grouped,
            )
            outputs.append(attended[0].transpose(0, 1))  # (T, Q, D)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_shared(self, index: int, queries: Tensor, batch: _Batch) -> Tensor:
        """One attention for all decoding chats: the cache is read in one stream. Returns (N, Q, D)."""
        assert batch.shared
        slots, mask = batch.shared
        seen = mask.shape[-1]
        attended = scaled_dot_product_attention(
            queries.unsqueeze(2),  # (R, Q, 1, D)
            self.cache.keys[index, slots, :, :seen],  # (R, K, P, D)
            self.cache.values[index, slots, :, :seen],
            attn_mask=mask,
            enable_gqa=self._grouped,
        )
        return attended.squeeze(2)

    def _batch(self, spans: Sequence[Span]) -> _Batch:
        device = self.weights.device
        offsets = [0]
        for span in spans:
            offsets.append(offsets[-1] + len(span.ids))
        positions = torch.tensor([span.start + i for span in spans for i in range(len(span.ids))], device=device)
        slots = torch.tensor([span.slot for span in spans for _ in span.ids], device=device)
        shared = self._shared_slots(spans)
        return _Batch(
            spans,
            offsets,
            slots,
            positions,
            self._cos[positions].unsqueeze(1),
            self._sin[positions].unsqueeze(1),
            [] if shared is not None else [self._mask(span) for span in spans],
            (shared, _lengths_mask(spans, device)) if shared is not None else None,
        )

    def _shared_slots(self, spans: Sequence[Span]) -> slice | Tensor | None:
        """Slots of spans that can share one attention; None where a separate one for each is faster."""
        if len(spans) == 1 or any(len(span.ids) > 1 for span in spans):
            return None
        first, longest = spans[0].slot, max(span.start for span in spans) + 1
        contiguous = all(span.slot == first + row for row, span in enumerate(spans))
        padding = longest * len(spans) - sum(span.start + 1 for span in spans)
        if contiguous and (self.always_share_attention or 3 * padding <= longest * len(spans)):
            return slice(first, first + len(spans))
        if not self.always_share_attention:
            return None
        return torch.tensor([span.slot for span in spans], device=self.weights.device)

    def _mask(self, span: Span) -> Tensor | None:
        if span.start == 0 or len(span.ids) == 1:
            return None
        seen = span.start + len(span.ids)
        return torch.ones(len(span.ids), seen, dtype=torch.bool, device=self.weights.device).tril(span.start)


def _lengths_mask(spans: Sequence[Span], device: torch.device) -> Tensor:
    """(R, 1, 1, P) bool: each chat sees the positions up to its own."""
    own = torch.tensor([span.start for span in spans], device=device)
    longest = max(span.start for span in spans) + 1
    return (torch.arange(longest, device=device) <= own[:, None])[:, None, None]
