"""How a product is cut for its number of rows and the card's shared memory.

Scope: numbers only; gemv.cu is compiled for them. Knows no driver and no buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import MOST_PREFETCHED, Layout
from qlora_chat.engines.cuda.weights.packing import KINDS, ROWS, Packed

Defines = tuple[tuple[str, int], ...]
"""What a source is compiled for."""
WARPS = (16, 8)
"""That multiply with the weights; fewer where their sums would leave no room for what they fetch, as on cards with 99 KiB."""
LEAST_STAGES, MOST_STAGES = (4, 3), (10, 6)
"""Of a warp's ring, for tiles in ones and in pairs; the most with the most warps."""
ITEM_COST = 0.3
"""What an item takes whatever its tiles, in tiles."""
TILE_BYTES = {"nf4": 528, "bf16": 1024, "int8": 1024}


@dataclass(frozen=True)
class Card:
    """What the kernels of a step are cut for."""

    processors: int
    shared_limit: int
    """Most shared memory of a block, in bytes."""
    early: bool
    """A kernel may take its place before the one before has ended (Hopper and newer)."""


@dataclass(frozen=True)
class _Way:
    """How a product in NF4 is cut for a number of rows, as bench/card/tune_tiling.py found it on an H200."""

    warps: int
    most_tiles: int
    wide: bool
    ahead: bool
    buffers: int


WAYS = {
    1: _Way(16, 2, wide=False, ahead=False, buffers=2), 2: _Way(8, 4, wide=True, ahead=True, buffers=1),
    4: _Way(8, 3, wide=True, ahead=False, buffers=1), 8: _Way(8, 2, wide=True, ahead=False, buffers=1),
}  # fmt: skip
"""By groups of 8 rows."""
WAYS_BESIDE_ADAPTERS = {
    1: _Way(8, 4, wide=True, ahead=True, buffers=2), 2: _Way(8, 3, wide=True, ahead=False, buffers=1),
    4: _Way(8, 3, wide=False, ahead=False, buffers=1), 8: _Way(8, 2, wide=False, ahead=False, buffers=1),
}  # fmt: skip
"""The same where the adapters' warps leave fewer registers to each."""
ONE_ITEM_BESIDE_ADAPTERS = {
    1: _Way(12, 2, wide=True, ahead=False, buffers=2),
    2: _Way(12, 2, wide=True, ahead=False, buffers=1),
}
"""Of these, where a processor has one item of two tiles at most: what it waits for is how long that takes."""


@dataclass(frozen=True)
class Geometry:
    """How a product is cut for a number of rows and this card's shared memory."""

    columns: int
    """Groups of 8 rows."""
    tiles: int
    """Row tiles that a block works on at once."""
    x_shared: bool
    """The rows are kept in shared memory, since they are read once for every tile."""
    stages: int
    """What each warp has on its way, and one more."""
    shared_bytes: int
    warps: int
    """That multiply with the weights."""
    wide: bool = False
    """NF4: the table of pairs has rows of 256 bytes."""
    ahead: bool = False
    """Rows that are not in shared memory are read a block ahead."""
    buffers: int = 1
    """Of items' sums."""

    @staticmethod
    def of(packed: Packed, rows: int, card: Card, low_rank: Layout | None = None) -> Geometry:
        """The best that fits in a block's shared memory. KernelError if none does."""
        beside = low_rank.shared_bytes(rows, MOST_PREFETCHED) if low_rank else 0
        limit = card.shared_limit - beside
        for each in _nf4_cuts(packed, rows, card, low_rank) if packed.kind == "nf4" else _dense_cuts(packed, rows, limit):
            size = shared_bytes(packed, rows, each, adapted=low_rank is not None)
            if size <= limit:
                return replace(each, shared_bytes=max(size + beside, card.shared_limit // 2 + 1024))  # two blocks never share
        raise KernelError(f"{limit:,} bytes of shared memory a block are too few for a product of {rows} rows")

    def defines(self, packed: Packed, rank: int = 0, *, kv8: bool) -> Defines:
        """What gemv.cu is compiled for."""
        return (
            ("BUFFERS", self.buffers), ("CT", self.columns), ("KV8", int(kv8)), ("LORA", rank), ("PAIRED", int(packed.paired)),
            ("READ_AHEAD", int(self.ahead)), ("RT", self.tiles), ("STAGES", self.stages), ("WARPS", self.warps),
            ("WEIGHTS", KINDS[packed.kind]), ("WIDE", int(self.wide)), ("X_SHARED", int(self.x_shared)),
        )  # fmt: skip


def _nf4_cuts(packed: Packed, rows: int, card: Card, low_rank: Layout | None) -> Iterator[Geometry]:
    """The best first. What is not taken of shared memory is first-level cache, where the rows are."""
    columns = max(1, rows // 8)
    way = (WAYS_BESIDE_ADAPTERS if low_rank else WAYS)[columns]
    if low_rank and packed.row_tiles <= 2 * card.processors:
        way = ONE_ITEM_BESIDE_ADAPTERS.get(columns, way)
    if not packed.paired:  # a lane works out scales of two tiles at most, and a block ahead is the other one of a pair
        way = replace(way, most_tiles=min(2, way.most_tiles), ahead=False)

    def cost(tiles: int) -> float:
        """Of the busiest processor: its tiles, and what each item takes beside them."""
        items = -(-packed.row_tiles // tiles)
        return -(-items // card.processors) * (tiles + ITEM_COST)

    by_cost = sorted(range(way.most_tiles, 0, -1), key=cost)
    wides = (True, False) if way.wide else (False,)
    of_sums = range(way.buffers, 0, -1)
    for warps, stages, buffers, tiles, wide in product(dict.fromkeys((way.warps, 8)), (3, 2), of_sums, by_cost, wides):
        yield Geometry(columns, tiles, False, stages, 0, warps, wide, way.ahead, buffers)


def _dense_cuts(packed: Packed, rows: int, limit: int) -> Iterator[Geometry]:
    """For bf16 and 8 bits: as much as possible on its way, as nothing but memory is waited for."""
    columns = max(1, rows // 8)
    buffers = 2 if columns == 1 else 1
    tries = ([(1, True)] if columns == 1 else []) + ([(2, False)] if columns <= 4 else []) + [(1, False)]
    least = LEAST_STAGES[packed.paired]
    for warps in WARPS:
        most = MOST_STAGES[packed.paired] * WARPS[0] // warps
        for tiles, x_shared in tries:
            for stages in range(most, least - 1, -1):
                each = Geometry(columns, tiles, x_shared, stages, 0, warps, buffers=buffers)
                if stages == most or shared_bytes(packed, rows, each, adapted=False) > limit // 2 - 1024:
                    yield each
    for warps in WARPS:
        for stages in range(least - 1, 1, -1):
            yield Geometry(columns, 1, False, stages, 0, warps, buffers=buffers)


def shared_bytes(packed: Packed, rows: int, cut: Geometry, *, adapted: bool) -> int:
    """What a block has beside the adapters' part."""
    table = (65_536 if cut.wide else 32_768) + 1024 if packed.kind == "nf4" else 0
    ring = cut.warps * cut.stages * cut.tiles * TILE_BYTES[packed.kind] * (2 if packed.paired else 1)
    stride = cut.columns * 8 + (8 if cut.columns > 1 else 0)
    sums = (cut.warps + adapted) * cut.tiles * ROWS * stride * 4 * cut.buffers
    return table + ring + sums + cut.columns * 8 * 4 + 16 * cut.buffers + (rows * packed.inputs * 2 if cut.x_shared else 0)
