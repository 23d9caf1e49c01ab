"""Device memory of a step besides weights and cache.

Scope: buffers for up to 64 rows, allocated once, since graphs record addresses. Knows no kernels and no order.

Shapes: R rows (64), H hidden, F feed-forward, V vocabulary, Q and K query and key-value heads, D head dimension, W window,
S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.rows import MAX_ROWS, ROW_LAYOUT
from qlora_chat.engines.cuda.weights.model import MAX_PARTIALS, CudaWeights, ceil_div

RING = 64
"""Sampled tokens and steps that the host may lag behind."""
MAX_SPLITS = 16
"""Splits of a chat's positions in attention."""
BARRIER_COUNTERS = 4
"""Int32 before the adapters' counters; the first is decode_layers.cu's grid barrier."""


class Buffers:
    """One set for all graphs, since steps run one after another."""

    def __init__(self, weights: CudaWeights, cache: KVCache) -> None:
        shape, device = weights.shape, weights.norm.device

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        bf16, int32, width = torch.bfloat16, torch.int32, shape.queries
        self.residual, self.x = zeros(MAX_ROWS, shape.hidden), zeros(MAX_ROWS, shape.hidden, dtype=bf16)
        self.queries, self.attended = zeros(MAX_ROWS, width), zeros(MAX_ROWS, width, dtype=bf16)
        heads = shape.heads + 2 * shape.kv_heads
        self.qkv = zeros(MAX_ROWS, heads * shape.head_dim) if shape.head_norms else None
        """Queries, keys and values before the norms of their heads, in rotary_order."""
        self.activated = zeros(MAX_ROWS, weights.shape.feed_forward, dtype=bf16)
        self.squares = zeros(2, MAX_ROWS, MAX_PARTIALS)
        """Partial sums of squares of the residual: [0] after the MLP, [1] after attention."""
        kv8 = cache.key_scales is not None
        self.new_kv = zeros(2, MAX_ROWS, shape.kv_heads, shape.head_dim) if kv8 else None
        """A step's keys and values before they are quantized."""
        self.logits = zeros(MAX_ROWS, shape.vocabulary)
        self.partials = zeros(MAX_ROWS * shape.heads * MAX_SPLITS * (shape.head_dim + 2))
        self.arrived = zeros(MAX_ROWS, shape.kv_heads, dtype=int32)
        self.rows = zeros(ROW_LAYOUT.itemsize // 4, dtype=int32)
        """Columns as rows.pack_rows lays them out."""
        self.seen = zeros(len(cache.slots), ceil_div(shape.vocabulary, 32), dtype=int32)
        """(S, V / 32): a bit per token of the vocabulary."""
        self.sampled = torch.zeros(MAX_ROWS, RING, dtype=int32).pin_memory()
        """Pinned host memory, written by the card."""
        self.rope_cos_sin = torch.stack(shape.rope_angles(), dim=-1).to(device).contiguous()
        """(W, D / 2, 2)"""
        self.counters = zeros(BARRIER_COUNTERS, dtype=int32)

    def resize_counters(self, adapters: int) -> None:
        """Replace the counters by ones with so many int32 for adapters, at another address."""
        self.counters = torch.zeros(BARRIER_COUNTERS + adapters, dtype=torch.int32, device=self.counters.device)

    def column(self, name: str) -> int:
        """Address of a column of the rows."""
        return self.rows.data_ptr() + ROW_LAYOUT.fields[name][1]  # type: ignore[index]
