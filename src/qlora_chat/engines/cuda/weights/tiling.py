"""Tiling of a product in gemv.cu for its number of rows and the card's shared memory.

Scope: numbers that gemv.cu is compiled for. Knows no driver calls and no buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import MAX_PREFETCHED, LoraLayout
from qlora_chat.engines.cuda.weights.packing import KINDS, TILE_ROWS, Packed

Defines = tuple[tuple[str, int], ...]
"""Preprocessor definitions of a source."""
WARPS = (16, 8)
"""Warps that multiply with the weights; fewer where their sums leave no shared memory for the ring, as on cards with 99 KiB."""
MIN_STAGES, MAX_STAGES = (4, 3), (10, 6)
"""Stages of a warp's ring, for single blocks and for pairs; the maximum is for 16 warps."""
ITEM_COST = 0.3
"""Overhead of an item, in the time of a tile."""
TILE_BYTES = {"nf4": 528, "bf16": 1024, "int8": 1024}


@dataclass(frozen=True)
class Card:
    """Properties of a card that tilings depend on."""

    processors: int
    shared_limit: int
    """Bytes of shared memory that a thread block may have."""
    dependent_launch: bool
    """Programmatic dependent launch is available (Hopper and newer)."""


@dataclass(frozen=True)
class _Preset:
    """Tiling of an NF4 product, measured with bench/card/tune_tiling.py on an H200."""

    warps: int
    max_tiles: int
    wide: bool
    read_ahead: bool
    buffers: int


PRESETS = {
    1: _Preset(16, 2, wide=False, read_ahead=False, buffers=2), 2: _Preset(8, 4, wide=True, read_ahead=True, buffers=1),
    4: _Preset(8, 3, wide=True, read_ahead=False, buffers=1), 8: _Preset(8, 2, wide=True, read_ahead=False, buffers=1),
}  # fmt: skip
"""Presets by groups of 8 rows."""
LORA_PRESETS = {
    1: _Preset(8, 4, wide=True, read_ahead=True, buffers=2), 2: _Preset(8, 3, wide=True, read_ahead=False, buffers=1),
    4: _Preset(8, 3, wide=False, read_ahead=False, buffers=1), 8: _Preset(8, 2, wide=False, read_ahead=False, buffers=1),
}  # fmt: skip
"""The same with adapters, whose warps leave fewer registers to each warp."""
LORA_ONE_ITEM_PRESETS = {
    1: _Preset(12, 2, wide=True, read_ahead=False, buffers=2),
    2: _Preset(12, 2, wide=True, read_ahead=False, buffers=1),
}
"""The same where a processor has at most one item of two tiles, so that the latency of an item counts."""


@dataclass(frozen=True)
class Tiling:
    """Tiling of a product for a number of rows."""

    columns: int
    """Groups of 8 rows."""
    tiles: int
    """Row tiles of an item, which a thread block computes at once."""
    x_shared: bool
    """Copy the rows to shared memory, since they are read once per tile."""
    stages: int
    """Stages of a warp's ring: those being fetched, and one in use."""
    shared_bytes: int
    warps: int
    """Warps that multiply with the weights."""
    wide: bool = False
    """NF4: rows of the lookup table have 256 bytes."""
    read_ahead: bool = False
    """Read the rows from global memory a block ahead."""
    buffers: int = 1
    """Buffers of items' sums."""

    @staticmethod
    def of(packed: Packed, rows: int, card: Card, lora: LoraLayout | None = None) -> Tiling:
        """The best that fits in a block's shared memory. KernelError if none does."""
        lora_bytes = lora.shared_bytes(rows, MAX_PREFETCHED) if lora else 0
        limit = card.shared_limit - lora_bytes
        for each in _nf4_tilings(packed, rows, card, lora) if packed.kind == "nf4" else _dense_tilings(packed, rows, limit):
            size = shared_bytes(packed, rows, each, adapted=lora is not None)
            if size <= limit:  # and more than half of the memory: two blocks must not share a processor
                return replace(each, shared_bytes=max(size + lora_bytes, card.shared_limit // 2 + 1024))
        raise KernelError(f"{limit:,} bytes of shared memory a block are too few for a product of {rows} rows")

    def defines(self, packed: Packed, rank: int = 0, *, kv8: bool) -> Defines:
        """Defines of gemv.cu."""
        return (
            ("BUFFERS", self.buffers), ("CT", self.columns), ("KV8", int(kv8)), ("LORA", rank), ("PAIRED", int(packed.paired)),
            ("READ_AHEAD", int(self.read_ahead)), ("RT", self.tiles), ("STAGES", self.stages), ("WARPS", self.warps),
            ("WEIGHTS", KINDS[packed.kind]), ("WIDE", int(self.wide)), ("X_SHARED", int(self.x_shared)),
        )  # fmt: skip


def _nf4_tilings(packed: Packed, rows: int, card: Card, lora: LoraLayout | None) -> Iterator[Tiling]:
    """Tilings, the best first. Shared memory that is not used is L1 cache for the rows."""
    columns = max(1, rows // 8)
    preset = (LORA_PRESETS if lora else PRESETS)[columns]
    if lora and packed.row_tiles <= 2 * card.processors:
        preset = LORA_ONE_ITEM_PRESETS.get(columns, preset)
    if not packed.paired:  # a lane has scales of two tiles at most, and the block ahead is the other one of a pair
        preset = replace(preset, max_tiles=min(2, preset.max_tiles), read_ahead=False)

    def cost(tiles: int) -> float:
        """Time of the busiest processor: its tiles, and the overhead of its items."""
        items = -(-packed.row_tiles // tiles)
        return -(-items // card.processors) * (tiles + ITEM_COST)

    by_cost = sorted(range(preset.max_tiles, 0, -1), key=cost)
    wides = (True, False) if preset.wide else (False,)
    buffer_counts = range(preset.buffers, 0, -1)
    for warps, stages, buffers, tiles, wide in product(dict.fromkeys((preset.warps, 8)), (3, 2), buffer_counts, by_cost, wides):
        yield Tiling(columns, tiles, False, stages, 0, warps, wide, preset.read_ahead, buffers)


def _dense_tilings(packed: Packed, rows: int, limit: int) -> Iterator[Tiling]:
    """Tilings for bf16 and int8, the best first: the longest ring, since these are bound by memory alone."""
    columns = max(1, rows // 8)
    buffers = 2 if columns == 1 else 1
    tries = ([(1, True)] if columns == 1 else []) + ([(2, False)] if columns <= 4 else []) + [(1, False)]
    min_stages = MIN_STAGES[packed.paired]
    for warps in WARPS:
        max_stages = MAX_STAGES[packed.paired] * WARPS[0] // warps
        for tiles, x_shared in tries:
            for stages in range(max_stages, min_stages - 1, -1):
                each = Tiling(columns, tiles, x_shared, stages, 0, warps, buffers=buffers)
                if stages == max_stages or shared_bytes(packed, rows, each, adapted=False) > limit // 2 - 1024:
                    yield each
    for warps in WARPS:
        for stages in range(min_stages - 1, 1, -1):
            yield Tiling(columns, 1, False, stages, 0, warps, buffers=buffers)


def shared_bytes(packed: Packed, rows: int, tiling: Tiling, *, adapted: bool) -> int:
    """Shared memory of a thread block without the adapters' part."""
    table = (65_536 if tiling.wide else 32_768) + 1024 if packed.kind == "nf4" else 0
    ring = tiling.warps * tiling.stages * tiling.tiles * TILE_BYTES[packed.kind] * (2 if packed.paired else 1)
    stride = tiling.columns * 8 + (8 if tiling.columns > 1 else 0)
    sums = (tiling.warps + adapted) * tiling.tiles * TILE_ROWS * stride * 4 * tiling.buffers
    x = rows * packed.inputs * 2 if tiling.x_shared else 0
    return table + ring + sums + tiling.columns * 8 * 4 + 16 * tiling.buffers + x
