"""KV cache: keys and values of every chat, in slots that survive the request (prefix caching).

Scope: the tensors, the token ids that each slot holds, and which slot suits a prompt best. Knows no sampling or threads. Only
the CUDA kernels write an int8 cache, in which each head's key or value has its own float32 scale.

Shapes: L layers, S slots, K key-value heads, W window, D head dimension.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
import torch

from qlora_chat.models.weights.llama import LlamaWeights

MAX_SLOTS = 16
RESERVED_BYTES = 512 * 2**20
"""Left free on a card next to the cache, for the intermediate results of a pass."""


@dataclass
class Slot:
    """Room for one conversation in the cache."""

    index: int
    ids: list[int] = field(default_factory=list)
    """Ids whose keys and values are in the cache, from position 0 on."""
    adapter: object = None
    """Adapter that computed the keys and values; None for the base. Prompts of another adapter share nothing."""
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

    def prefix(self, slot: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A slot's keys and values of its first `positions`, (1, K, P, D); dequantized to bf16 from an int8 cache."""
        return (
            _dequantized(self.keys[slot, :, :positions], self.key_scales, slot, positions),
            _dequantized(self.values[slot, :, :positions], self.value_scales, slot, positions),
        )


def _dequantized(cached: torch.Tensor, scales: torch.Tensor | None, slot: int, positions: int) -> torch.Tensor:
    if scales is None:
        return cached.unsqueeze(0)
    out = torch.empty(cached.shape, dtype=torch.bfloat16, device=cached.device)
    return torch.mul(cached, scales[slot, :, :positions, None], out=out).unsqueeze(0)


class KVCache:
    """Static tensors for a fixed number of slots; a free slot holds its last conversation until another needs the slot."""

    def __init__(self, weights: LlamaWeights, slots: int, dtype: torch.dtype | None = None) -> None:
        shape = weights.shape
        self.dtype = dtype or cache_dtype(weights)
        size = (shape.layers, slots, shape.kv_heads, shape.window, shape.head_dim)
        self.keys = _zeros(size, weights.device, self.dtype)  # (L, S, K, W, D)
        self.values = _zeros(size, weights.device, self.dtype)
        quantized = self.dtype == torch.int8
        self.key_scales = torch.zeros(size[:-1], device=weights.device) if quantized else None  # (L, S, K, W)
        self.value_scales = torch.zeros(size[:-1], device=weights.device) if quantized else None
        self.slots = [Slot(index) for index in range(slots)]
        self._clock = 0

    def layer(self, index: int) -> CachedLayer:
        """View of one layer."""
        scales = (each if each is None else each[index] for each in (self.key_scales, self.value_scales))
        return CachedLayer(self.keys[index], self.values[index], *scales)

    def acquire(self, prompt: Sequence[int], adapter: object = None) -> Slot | None:
        """Reserve the free slot that shares the longest prefix with the prompt, truncated to it; None if all are busy.

        Without a shared prefix, the least recently used slot. At least the prompt's last token is left to compute, since
        its logits give the first token of the answer.
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        best = max(free, key=lambda slot: (_reusable(slot, prompt, adapter), -slot.last_used))
        shared = min(common_prefix(best.ids, prompt), len(prompt) - 1) if best.adapter is adapter else 0
        del best.ids[shared:]
        best.adapter = adapter
        best.busy = True
        return best

    def release(self, slot: Slot) -> None:
        """Free the slot; its contents stay until another chat needs it."""
        self._clock += 1
        slot.busy, slot.last_used = False, self._clock


def _zeros(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Zeros; in RAM their pages are allocated by the system when they are first written, so that unused slots cost nothing.

    torch.zeros would write all of them at every start: 0.6 s for SmolLM2's eight slots of 8,192 tokens, 1.4 GiB.
    """
    if device.type != "cpu":
        return torch.zeros(size, device=device, dtype=dtype)
    return torch.frombuffer(_pages(math.prod(size) * dtype.itemsize), dtype=dtype).view(size)


def _pages(count: int) -> mmap.mmap:
    """Bytes that are 0, in pages of the usual size. MemoryError without room.

    The first token of a slot touches a page for every layer and head. If these had 2 MiB, the system would clear a whole window
    before the first word of a conversation.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, count)
    try:
        pages = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as problem:
        raise MemoryError(f"no room for a KV cache of {count / 2**30:.1f} GiB") from problem
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages


def _reusable(slot: Slot, prompt: Sequence[int], adapter: object) -> int:
    """Shared tokens if they are most of the slot's, or all of the prompt (the same question again); else 0. A system text
    that every chat begins with must not evict another conversation while an older slot is free."""
    shared = common_prefix(slot.ids, prompt) if slot.adapter is adapter else 0
    return shared if 2 * shared >= len(slot.ids) or shared >= len(prompt) - 1 else 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = min(len(a), len(b))
    for index in range(length):
        if a[index] != b[index]:
            return index
    return length


def cache_dtype(weights: LlamaWeights) -> torch.dtype:
    """The weights' own type on a card; float32 on a CPU, where bfloat16 attention takes six times as long."""
    return torch.float32 if weights.device.type == "cpu" else weights.dtype


def slot_bytes(weights: LlamaWeights, dtype: torch.dtype | None = None) -> int:
    """Bytes of one slot's keys and values, including the scales of int8."""
    shape, dtype = weights.shape, dtype or cache_dtype(weights)
    vector = shape.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return 2 * shape.layers * shape.kv_heads * shape.window * vector


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated; on a card, including memory that PyTorch has cached for reuse."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fitting_slots(weights: LlamaWeights, dtype: torch.dtype | None = None, reserve: int = 0) -> int:
    """Number of full windows that fit next to the weights, 1 to 16. A CPU offers at most a quarter of its free memory, a card
    all but RESERVED_BYTES and `reserve`: bytes that are still to be allocated, as for adapters."""
    slot, free = slot_bytes(weights, dtype), free_bytes(weights.device)
    free = free - RESERVED_BYTES - reserve if weights.device.type == "cuda" else free // 4
    return max(1, min(MAX_SLOTS, free // slot))
