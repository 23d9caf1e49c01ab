"""One forward pass of a LLaMA over any mix of prompts being read and answers being written.

Scope: arithmetic only. The tokens of all chats run through the linear layers together; attention looks at each chat's
own slot. This is the place for graphs and kernels: `Forward.__call__` is the step. Knows no sampling, stops or threads.

Shapes: N tokens in the pass, R spans (one a chat), H hidden, Q query heads, K key-value heads, D head dimension,
T tokens in a span, P positions seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.models.weights.llama import Layer, LlamaWeights, fastest_on_cpu


@dataclass(frozen=True)
class Span:
    """Tokens of one chat that go through the model in this pass."""

    slot: int
    start: int
    """Position of the first; everything before it is in the cache."""
    ids: Sequence[int]
    logits: int = 1
    """For how many of its last tokens logits are wanted: more than one where drafted tokens are being checked, none where
    the rest of a prompt follows."""


@dataclass(frozen=True)
class _Batch:
    """Spans laid end to end."""

    spans: Sequence[Span]
    offsets: list[int]
    """Where each span begins among the N tokens; one more for the end."""
    slots: Tensor  # (N,)
    positions: Tensor  # (N,)
    cos: Tensor  # (N, 1, D)
    sin: Tensor  # (N, 1, D)
    masks: list[Tensor | None]
    """For each span: which positions a token may see, (T, P) bool; None where attention is plainly causal or total."""
    together: tuple[slice | Tensor, Tensor] | None
    """Where one attention serves all spans, each of one token: their slots (R) and a mask (R, 1, 1, P)."""


class Forward:
    """Runs spans through the weights, writing keys and values into the cache."""

    def __init__(self, weights: LlamaWeights, cache: KVCache) -> None:
        self.weights, self.cache = fastest_on_cpu(weights), cache
        shape = weights.shape
        angles = torch.outer(torch.arange(shape.window).float(), shape.rope_frequencies())  # (W, D / 2)
        angles = torch.cat((angles, angles), dim=-1).to(weights.device)
        self._cos = angles.cos().to(cache.dtype)
        self._sin = angles.sin().to(cache.dtype)
        self._grouped = shape.heads != shape.kv_heads
        self.always_together = weights.device.type == "cuda"
        """Whether chats that decode share one attention even at the price of copying caches that do not lie side by side,
        or of padding short ones: a card gains more by fewer launches."""

    @torch.inference_mode()
    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last `logits` tokens of each span, one row a token in the spans' order: (R, V) float32 where each
        wants one."""
        batch = self._lay_out(spans)
        ids = torch.tensor([each for span in spans for each in span.ids], device=self.weights.device)
        hidden = self.weights.embeddings[ids]  # (N, H)
        for index, layer in enumerate(self.weights.layers):
            hidden = hidden + self._attention(layer, index, hidden, batch)
            hidden = hidden + self._mlp(layer, hidden)
        wanted = [end - each for span, end in zip(spans, batch.offsets[1:], strict=True) for each in range(span.logits, 0, -1)]
        if not wanted:
            return hidden.new_empty((0, self.weights.shape.vocabulary), dtype=torch.float32)
        return self.weights.head(self._norm(hidden[wanted], self.weights.norm)).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.weights.shape.norm_eps)

    def _mlp(self, layer: Layer, hidden: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._norm(hidden, layer.mlp_norm)).chunk(2, dim=-1)
        return layer.mlp_down(silu(gate) * up)

    def _attention(self, layer: Layer, index: int, hidden: Tensor, batch: _Batch) -> Tensor:
        shape = self.weights.shape
        qkv = layer.qkv(self._norm(hidden, layer.attention_norm)).view(len(hidden), -1, shape.head_dim).to(self.cache.dtype)
        rotated = self._rotate(qkv[:, : shape.heads + shape.kv_heads], batch)  # queries and keys, (N, Q + K, D)
        queries, keys = rotated.split((shape.heads, shape.kv_heads), dim=1)
        self.cache.keys[index, batch.slots, :, batch.positions] = keys
        self.cache.values[index, batch.slots, :, batch.positions] = qkv[:, shape.heads + shape.kv_heads :]
        seen = self._attend_together(index, queries, batch) if batch.together else self._attend_each(index, queries, batch)
        return layer.attention_out(seen.reshape(len(hidden), -1).to(hidden.dtype))

    @staticmethod
    def _rotate(x: Tensor, batch: _Batch) -> Tensor:
        """Rotary position embedding with the halves of a head as pairs, as Hugging Face stores LLaMA."""
        first, second = x.chunk(2, dim=-1)
        return x * batch.cos + torch.cat((-second, first), dim=-1) * batch.sin

    def _attend_each(self, index: int, queries: Tensor, batch: _Batch) -> Tensor:
        """A chat at a time over exactly its own positions: a batch cannot change what a chat sees. -> (N, Q, D)."""
        outputs = []
        for row, span in enumerate(batch.spans):
            seen = span.start + len(span.ids)
            mine = queries[batch.offsets[row] : batch.offsets[row + 1]].transpose(0, 1).unsqueeze(0)  # (1, Q, T, D)
            attended = scaled_dot_product_attention(
                mine,
                self.cache.keys[index, span.slot, :, :seen].unsqueeze(0),  # (1, K, P, D)
                self.cache.values[index, span.slot, :, :seen].unsqueeze(0),
                attn_mask=batch.masks[row],
                is_causal=span.start == 0 and len(span.ids) > 1,
                enable_gqa=self._grouped,
            )
            outputs.append(attended[0].transpose(0, 1))  # (T, Q, D)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_together(self, index: int, queries: Tensor, batch: _Batch) -> Tensor:
        """One attention for all chats that decode: the memory is read in one stream. -> (N, Q, D)."""
        assert batch.together
        slots, mask = batch.together
        seen = mask.shape[-1]
        attended = scaled_dot_product_attention(
            queries.unsqueeze(2),  # (R, Q, 1, D)
            self.cache.keys[index, slots, :, :seen],  # (R, K, P, D)
            self.cache.values[index, slots, :, :seen],
            attn_mask=mask,
            enable_gqa=self._grouped,
        )
        return attended.squeeze(2)

    def _lay_out(self, spans: Sequence[Span]) -> _Batch:
        device = self.weights.device
        offsets = [0]
        for span in spans:
            offsets.append(offsets[-1] + len(span.ids))
        positions = torch.tensor([span.start + i for span in spans for i in range(len(span.ids))], device=device)
        slots = torch.tensor([span.slot for span in spans for _ in span.ids], device=device)
        together = self._side_by_side(spans)
        return _Batch(
            spans,
            offsets,
            slots,
            positions,
            self._cos[positions].unsqueeze(1),
            self._sin[positions].unsqueeze(1),
            [] if together is not None else [self._mask(span) for span in spans],
            (together, _lengths_mask(spans, device)) if together is not None else None,
        )

    def _side_by_side(self, spans: Sequence[Span]) -> slice | Tensor | None:
        """The slots of spans that can share one attention; None where each is better served alone."""
        if len(spans) == 1 or any(len(span.ids) > 1 for span in spans):
            return None
        first, longest = spans[0].slot, max(span.start for span in spans) + 1
        in_a_row = all(span.slot == first + row for row, span in enumerate(spans))
        padding = longest * len(spans) - sum(span.start + 1 for span in spans)
        if in_a_row and (self.always_together or 3 * padding <= longest * len(spans)):
            return slice(first, first + len(spans))
        return torch.tensor([span.slot for span in spans], device=self.weights.device) if self.always_together else None

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
