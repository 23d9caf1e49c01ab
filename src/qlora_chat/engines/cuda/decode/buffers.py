"""What the kernels of a step read and write besides weights and cache.

Scope: device memory for up to 64 rows, allocated once, since graphs remember addresses. Knows no kernels and no order.

Shapes: R the most rows (64), H hidden, F feed-forward, V vocabulary, Q and K query and key-value heads, D head dimension,
W window, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.rows import FIELDS, MOST_ROWS
from qlora_chat.engines.cuda.weights.model import MOST_PARTIALS, CudaWeights, divided

RING = 64
"""Tokens of a row that the host may be behind."""
MOST_SPLITS = 16
"""Parts in which a chat's past is attended to."""
BARRIER = 4
"""Int32 before the adapters' counters: the first is the barrier's in decode_layers.cu."""


class Buffers:
    """One set for all graphs: steps follow each other."""

    def __init__(self, weights: CudaWeights, cache: KVCache) -> None:
        shape, device = weights.shape, weights.norm.device

        def floats(*size: int) -> Tensor:
            return torch.zeros(size, device=device)

        def halves(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.bfloat16, device=device)

        def ints(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        width = shape.heads * shape.head_dim
        self.residual, self.x = floats(MOST_ROWS, shape.hidden), halves(MOST_ROWS, shape.hidden)
        self.queries, self.attended = floats(MOST_ROWS, width), halves(MOST_ROWS, width)
        self.activated = halves(MOST_ROWS, weights.feed_forward)
        self.squares = floats(2, MOST_ROWS, MOST_PARTIALS)
        """Of the residual, in parts: [0] after the MLP, [1] after attention."""
        kv8 = cache.key_scales is not None
        self.newest = floats(2, MOST_ROWS, shape.kv_heads, shape.head_dim) if kv8 else None
        """Keys and values of a step before they are in 8 bits."""
        self.logits = floats(MOST_ROWS, shape.vocabulary)
        self.partials = floats(MOST_ROWS * shape.heads * MOST_SPLITS * (shape.head_dim + 2))
        self.arrived = ints(MOST_ROWS, shape.kv_heads)
        self.rows = ints((len(FIELDS) + 2) * MOST_ROWS)
        """As rows.columns_of lays them out."""
        self.seen = ints(len(cache.slots), divided(shape.vocabulary, 32))
        """A bit a token of the vocabulary, a chat a slot."""
        self.drawn = torch.zeros(MOST_ROWS, RING, dtype=torch.int32).pin_memory()
        """In the host's memory: the card writes there."""
        angles = torch.outer(torch.arange(shape.window).float(), shape.rope_frequencies())
        self.turns = torch.stack((angles.cos(), angles.sin()), dim=-1).to(device).contiguous()
        """(W, D / 2, 2)"""
        self.counters = ints(BARRIER)

    def make_counters(self, adapters: int) -> None:
        """New ones with so many int32 for adapters, at another address."""
        self.counters = torch.zeros(BARRIER + adapters, dtype=torch.int32, device=self.counters.device)

    def field(self, name: str) -> int:
        """The address of a column of the rows."""
        at = len(FIELDS) if name == "seeds" else FIELDS.index(name)
        return self.rows.data_ptr() + at * MOST_ROWS * 4
