"""How a product is cut for its number of rows and the card's shared memory.

Scope: numbers only; product.cu is compiled for them. Knows no driver and no buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlora_chat.engines.cuda.driver import KernelError
from qlora_chat.engines.cuda.low_rank import MOST_PREFETCHED, Layout
from qlora_chat.engines.cuda.packing import KINDS, ROWS, Packed

Defines = tuple[tuple[str, int], ...]
"""What a source is compiled for."""
WARPS = (16, 8)
"""That multiply with the weights; fewer where their sums would leave no room for what they fetch, as on cards with 99 KiB."""
LEAST_STAGES, MOST_STAGES = (4, 3), (10, 6)
"""Of a warp's ring, for tiles in ones and in pairs; the most with the most warps."""
MOST_TILES = 2
"""Row tiles that a block works on at once."""
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

    @staticmethod
    def of(packed: Packed, rows: int, limit: int, low_rank: Layout | None = None) -> Geometry:
        """The first that fits in `limit` bytes of shared memory a block. KernelError if none does."""
        columns = max(1, rows // 8)
        beside = low_rank.shared_bytes(rows, MOST_PREFETCHED) if low_rank else 0
        limit -= beside
        tries: list[tuple[int, bool]] = []
        if columns == 1:
            tries = [(1, True)]
        tries += [(MOST_TILES, False)] if columns <= (2 if low_rank else 4) else []  # more warps leave fewer registers for each
        tries += [(1, False)]

        def cut(warps: int, tiles: int, x_shared: bool, stages: int) -> Geometry:
            size = _shared_bytes(packed, rows, columns, warps, low_rank is not None, tiles, x_shared, stages)
            return Geometry(columns, tiles, x_shared, stages, size + beside, warps)

        least = LEAST_STAGES[packed.paired]
        for warps in WARPS:
            most = MOST_STAGES[packed.paired] * WARPS[0] // warps
            for tiles, x_shared in tries:
                for stages in range(most, least - 1, -1):
                    found = cut(warps, tiles, x_shared, stages)
                    size = found.shared_bytes - beside
                    if limit // 2 - 1024 < size <= limit or (size <= limit and stages == most):
                        return found
        for warps in WARPS:
            for stages in range(least - 1, 1, -1):
                found = cut(warps, 1, False, stages)
                if found.shared_bytes - beside <= limit:
                    return found
        raise KernelError(f"{limit:,} bytes of shared memory a block are too few for a product of {rows} rows")

    def defines(self, packed: Packed, rank: int = 0, *, kv8: bool) -> Defines:
        """What product.cu is compiled for."""
        return (
            ("CT", self.columns), ("KV8", int(kv8)), ("LORA", rank), ("PAIRED", int(packed.paired)), ("RT", self.tiles),
            ("STAGES", self.stages), ("WARPS", self.warps), ("WEIGHTS", KINDS[packed.kind]), ("X_SHARED", int(self.x_shared)),
        )  # fmt: skip


def _shared_bytes(
    packed: Packed, rows: int, columns: int, warps: int, adapted: bool, tiles: int, x_shared: bool, stages: int
) -> int:
    table = 32_768 + 1024 if packed.kind == "nf4" else 0
    ring = warps * stages * tiles * TILE_BYTES[packed.kind] * (2 if packed.paired else 1)
    stride = columns * 8 + (8 if columns > 1 else 0)
    sums = (warps + adapted) * tiles * ROWS * stride * 4 * (2 if columns == 1 else 1)
    return table + ring + sums + columns * 8 * 4 + 32 + (rows * packed.inputs * 2 if x_shared else 0)
