"""All decoder layers of a narrow step beside adapters in one kernel: for whom, with which parts of shared memory, with what
arguments.

Scope: decode_layers.cu's geometry and arguments. The order of a step's kernels is launches.py's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.buffers import MOST_SPLITS
from qlora_chat.engines.cuda.runtime.arguments import RowsArguments, layers_arguments
from qlora_chat.engines.cuda.runtime.driver import address
from qlora_chat.engines.cuda.weights.lora_tiles import LowRank, sharing_of
from qlora_chat.engines.cuda.weights.model import CudaWeights, divided

MOST_ROWS = 2
"""What more rows take of shared memory leaves too little for the ring: four take longer than eight in a kernel a product."""
MOST_LAYERS = 40
"""Their addresses are the kernel's arguments, which may have 4 KiB."""
WARPS, TILES, PAIR_BYTES, HEAD_DIM = 8, 2, 1056, 128
THREADS = (WARPS + TILES) * 32
"""Of a block: an adapters' warp for each tile of an item."""
LEAST_STAGES, MOST_STAGES, WIDE_STAGES = 3, 7, 4
"""Of a warp's ring; with fewer than the last, the narrow table's room is worth more."""
SUM_BUFFERS = 4


@dataclass(frozen=True)
class Stack:
    """How decode_layers.cu is compiled and launched for a number of rows."""

    rows: int
    layers: int
    stages: int
    wide: bool
    most_blocks: int
    """Of inputs, in any product."""
    shared_bytes: int
    low_rank: LowRank
    prefetched: int
    """Blocks of an adapter's A that are fetched ahead."""
    kv8: bool
    """The cache has 8 bits."""

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        """What decode_layers.cu is compiled for."""
        return (
            ("KV8", int(self.kv8)), ("LAYERS", self.layers), ("LORA", self.low_rank.layout.rank), ("ROWS", self.rows),
            ("STAGES", self.stages), ("WIDE", int(self.wide)),
        )  # fmt: skip


def stack_for(weights: CudaWeights, low_rank: LowRank, rows: int, processors: int, limit: int, *, kv8: bool) -> Stack | None:
    """None where the layers, the rows or the card are not for this kernel, and one kernel a product does it."""
    shape = weights.shape
    products = [product for layer in weights.layers for product in layer.products]
    fits = (
        rows <= MOST_ROWS
        and shape.layers <= MOST_LAYERS
        and (shape.head_dim, shape.kv_heads) == (HEAD_DIM, shape.heads)
        and all(each.packed.kind == "nf4" and each.packed.paired for each in products)
        and all(each.packed.row_tiles >= processors for each in products)
        and all(each.packed.bias is None for layer in weights.layers for each in layer.products[1:])
    )
    if not fits:
        return None
    most_blocks = max(each.packed.blocks for each in products)
    prefetched = max(low_rank.layout.share(kind, sharing_of(each.packed, processors)) for kind, each in enumerate(products[:4]))
    beside = low_rank.layout.shared_bytes(rows, prefetched)
    for wide, least in ((True, WIDE_STAGES), (False, LEAST_STAGES)):
        for stages in range(MOST_STAGES, least - 1, -1):
            size = _shared_bytes(rows, stages, wide, most_blocks) + beside
            if size <= limit:
                return Stack(rows, shape.layers, stages, wide, most_blocks, size, low_rank, prefetched, kv8)
    return None


def _shared_bytes(rows: int, stages: int, wide: bool, most_blocks: int) -> int:
    table = 65_536 if wide else 32_768
    sums = SUM_BUFFERS * (WARPS + 1) * TILES * 16 * MOST_ROWS * 4
    attention = divided(THREADS // 32 * (HEAD_DIM + 2), 4) * 16
    ring = WARPS * stages * TILES * PAIR_BYTES
    return table + 1024 + ring + max(sums, attention) + 16 + 32 + 2 * SUM_BUFFERS * 8 + 16 + most_blocks * 128 * rows


def stack_arguments(
    stack: Stack, weights: CudaWeights, cache: KVCache, buffers: dict[str, Tensor | None], rows: RowsArguments,
    lora: ctypes.Structure, processors: int, most_rows: int,
) -> ctypes.Structure:  # fmt: skip
    """The kernel's arguments; `buffers`, for `most_rows`, are those of the fields that have their names, `lora` is LowRank in
    lora.cuh."""
    shape, layers = weights.shape, weights.layers
    made = layers_arguments(stack.layers)()
    products = [product.packed for layer in layers for product in layer.products]
    _set(made.tiles, [each.tiles for each in products])
    _set(made.nested, [each.nested for each in products])
    _set(made.biases, [layer.qkv.packed.bias for layer in layers])
    following = [*(layer.attention_norm for layer in layers[1:]), weights.norm]
    _set(made.norms, [norm for layer, after in zip(layers, following, strict=True) for norm in (layer.mlp_norm, after)])
    made.code, made.keys, made.values = address(products[0].code), address(cache.keys), address(cache.values)
    for name, buffer in buffers.items():
        setattr(made, name, address(buffer))
    made.rows = rows
    made.layer_elements = cache.keys[0].numel()
    made.key_scales, made.value_scales = address(cache.key_scales), address(cache.value_scales)
    made.row_tiles[:] = [each.row_tiles for each in products[:4]]
    made.k_blocks[:] = [each.blocks for each in products[:4]]
    made.heads, made.window = shape.heads, shape.window
    made.hidden, made.feed_forward = shape.hidden, weights.feed_forward
    made.most_splits = max(1, min(MOST_SPLITS, processors // shape.heads))
    made.first_squares, made.most_rows, made.most_blocks = 1, most_rows, stack.most_blocks
    made.eps, made.inverse_hidden = shape.norm_eps, 1.0 / shape.hidden
    made.softmax_scale = 1.4426950408889634 / HEAD_DIM**0.5
    parts = [stack.low_rank.part(0, kind, sharing_of(each, processors)) for kind, each in enumerate(products[:4])]
    made.lora, made.lora_layer, made.lora_outputs[:] = lora, stack.low_rank.layout.offsets[-1], [each.outputs for each in parts]
    made.lora_a[:], made.lora_b[:] = [each.a for each in parts], [each.b for each in parts]
    return made


def _set(array: ctypes.Array[ctypes.c_void_p], tensors: Sequence[Tensor | None]) -> None:
    array[:] = [address(each) for each in tensors]  # type: ignore[assignment]
