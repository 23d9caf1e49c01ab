"""What a step is told of its rows, and how it lies in memory.

Scope: one token of one chat a row, as columns of 64. Knows no kernels and no requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Rows of a graph; a step with fewer runs with padding."""
MOST_ROWS = BUCKETS[-1]
GUESSED = 2
"""In the field `ready`: 0 and 1, or this and the number of guesses, as in sampling.cu."""
FIELDS = ("slots", "positions", "tokens", "counts", "ready", "top_ks", "adapters", "temperatures", "top_ps", "penalties")


@dataclass(frozen=True)
class Row:
    """One token that goes through the model in a step."""

    slot: int
    position: int
    token: int
    ready: bool = False
    """Choose the next token from its logits."""
    count: int = 0
    """Tokens drawn so far by its chat: the number of the draw."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    penalty: float = 1.0
    seed: int = 0
    adapter: int = -1
    """Number of its unmerged adapter; -1: the base alone."""
    guessed: int | None = None
    """The tokens of so many rows, this one and those right before it, are guesses that are being checked (0: those of rows
    behind it are). Such rows choose as if the guesses were right, and leave everything else as it is: what became of the
    chat only the host knows. None: nobody guesses."""


def columns_of(rows: Sequence[Row]) -> NDArray[np.int32]:
    """FIELDS, a column of 64 rows each, then the seeds of two columns; what is padding has no slot and no adapter."""
    columns = np.zeros((len(FIELDS), MOST_ROWS), dtype=np.int32)
    columns[FIELDS.index("slots")] = columns[FIELDS.index("adapters")] = -1
    seeds = np.zeros(MOST_ROWS, dtype=np.uint64)
    for at, row in enumerate(rows):
        ready = row.ready if row.guessed is None else GUESSED + row.guessed
        columns[:7, at] = row.slot, row.position, row.token, row.count, ready, row.top_k, row.adapter
        columns[7:, at] = np.array((row.temperature, row.top_p, row.penalty), dtype=np.float32).view(np.int32)
        seeds[at] = row.seed
    return np.concatenate((columns.ravel(), seeds.view(np.int32)))
