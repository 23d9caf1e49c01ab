"""Keys and values of every chat, in slots that outlive an answer.

Scope: the tensors, which ids each slot holds, and which slot suits a prompt best. Knows no sampling and no threads. An int8
cache is written by the kernels for cards alone: each head's key or value has a float32 scale of its own.

Shapes: L layers, S slots, K key-value heads, W window, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
import torch

from qlora_chat.models.weights.llama import LlamaWeights

MOST_SLOTS = 16
SPARE_BYTES = 512 * 2**20
"""Left free on a card beside the cache, for a pass's intermediate results."""


@dataclass
class Slot:
    """One conversation's place in the cache."""

    index: int
    ids: list[int] = field(default_factory=list)
    """Ids whose keys and values are in the cache, from position 0 on."""
    adapter: object = None
    """What the keys and values were computed with besides the base; a prompt of another adapter shares nothing."""
    busy: bool = False
    last_used: int = 0


@dataclass(frozen=True)
class CachedLayer:
    """One layer's keys and values of all slots."""

    keys: torch.Tensor
    """(S, K, W, D)"""
    values: torch.Tensor
    key_scales: torch.Tensor | None
    """(S, K, W) float32 in an int8 cache: a key is its codes times its scale."""
    value_scales: torch.Tensor | None

    def seen(self, slot: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A slot's keys and values up to a position, (1, K, P, D); bf16 of an int8 cache."""
        return (
            _seen(self.keys[slot, :, :positions], self.key_scales, slot, positions),
            _seen(self.values[slot, :, :positions], self.value_scales, slot, positions),
        )


def _seen(kept: torch.Tensor, scales: torch.Tensor | None, slot: int, positions: int) -> torch.Tensor:
    if scales is None:
        return kept.unsqueeze(0)
    out = torch.empty(kept.shape, dtype=torch.bfloat16, device=kept.device)
    return torch.mul(kept, scales[slot, :, :positions, None], out=out).unsqueeze(0)


class KVCache:
    """Static tensors for a fixed number of slots; a free slot remembers its last conversation until it is needed."""

    def __init__(self, weights: LlamaWeights, slots: int, dtype: torch.dtype | None = None) -> None:
        shape = weights.shape
        self.dtype = dtype or cache_dtype(weights)
        size = (shape.layers, slots, shape.kv_heads, shape.window, shape.head_dim)
        self.keys = torch.zeros(size, device=weights.device, dtype=self.dtype)  # (L, S, K, W, D)
        self.values = torch.zeros_like(self.keys)
        scales = self.dtype == torch.int8
        self.key_scales = torch.zeros(size[:-1], device=weights.device) if scales else None  # (L, S, K, W)
        self.value_scales = torch.zeros(size[:-1], device=weights.device) if scales else None
        self.slots = [Slot(index) for index in range(slots)]
        self._clock = 0

    def layer(self, index: int) -> CachedLayer:
        """One layer of it."""
        scales = (each if each is None else each[index] for each in (self.key_scales, self.value_scales))
        return CachedLayer(self.keys[index], self.values[index], *scales)

    def take(self, prompt: Sequence[int], adapter: object = None) -> Slot | None:
        """The free slot that already holds most of the prompt, cut back to what they share; None if all are busy.

        Where none shares anything, the one longest unused goes. At least the prompt's last token is left to be
        computed, since its logits choose the first token of the answer.
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None

        def worth(slot: Slot) -> int:
            return self._worth_keeping(slot, prompt) if slot.adapter is adapter else 0

        best = max(free, key=lambda slot: (worth(slot), -slot.last_used))
        shared = min(common_prefix(best.ids, prompt), len(prompt) - 1) if best.adapter is adapter else 0
        del best.ids[shared:]
        best.adapter = adapter
        best.busy = True
        return best

    def release(self, slot: Slot) -> None:
        """Free the slot; what it holds stays until another chat needs the place."""
        self._clock += 1
        slot.busy, slot.last_used = False, self._clock

    @staticmethod
    def _worth_keeping(slot: Slot, prompt: Sequence[int]) -> int:
        """Shared tokens, if they are most of what the slot holds, or all of the prompt (the same question again). A system
        text that every chat begins with must not cost another conversation its cache while an older slot is free."""
        shared = common_prefix(slot.ids, prompt)
        return shared if 2 * shared >= len(slot.ids) or shared >= len(prompt) - 1 else 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    length = min(len(a), len(b))
    for index in range(length):
        if a[index] != b[index]:
            return index
    return length


def cache_dtype(weights: LlamaWeights) -> torch.dtype:
    """The weights' own type on a card; float32 on a CPU, whose bfloat16 attention takes six times as long."""
    return torch.float32 if weights.device.type == "cpu" else weights.dtype


def slot_bytes(weights: LlamaWeights, dtype: torch.dtype | None = None) -> int:
    """Bytes that one slot's keys and values take; int8 has scales beside."""
    shape, dtype = weights.shape, dtype or cache_dtype(weights)
    each = shape.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return 2 * shape.layers * shape.kv_heads * shape.window * each


def free_bytes(device: torch.device) -> int:
    """What may still be allocated; of a card, also what PyTorch keeps of what was freed."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fitting_slots(weights: LlamaWeights, dtype: torch.dtype | None = None, beside: int = 0) -> int:
    """How many chats' full windows fit beside the weights: 1 to 16. A CPU gives at most a quarter of its free memory, a card
    all but what is spared and `beside`: bytes that are still to come, as of adapters."""
    each, free = slot_bytes(weights, dtype), free_bytes(weights.device)
    free = free - SPARE_BYTES - beside if weights.device.type == "cuda" else free // 4
    return max(1, min(MOST_SLOTS, free // each))
