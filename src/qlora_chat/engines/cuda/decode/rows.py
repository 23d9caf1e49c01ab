"""The rows of a decode step and their layout in device memory.

Scope: one token of one chat per row, stored as columns of 64 values. Knows no kernels and no requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_chat.settings import LOGITS_PROCESSORS, SAMPLING_SETTINGS, Sampling

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Rows of the captured graphs; a step with other numbers of rows runs with padding."""
MAX_ROWS = BUCKETS[-1]
DRAFTED = 2
"""First of the sample modes of rows that verify a draft, as in sampling.cu."""
GREEDY = Sampling(temperature=0.0, top_p=1.0)


@dataclass(frozen=True)
class Row:
    """One token that goes through the model in a step."""

    slot: int
    position: int
    token: int
    sampling: Sampling | None = None
    """Settings to sample the next token with; None: a prefill row, which only fills the cache."""
    count: int = 0
    """Tokens sampled so far for its chat: the number of the random draw."""
    seed: int = 0
    adapter: int = -1
    """Number of its unmerged adapter; -1: the base alone."""
    drafted: int | None = None
    """Draft tokens among this row and those right before it (0: only later rows have drafts). Rows that verify a draft sample
    as if it were right and leave the device's state unchanged: the host decides what is accepted. None: no draft."""

    @property
    def sample_mode(self) -> int:
        """Mode in sampling.cu: 0 prefill, 1 sample and advance, DRAFTED + n verify a draft."""
        if self.sampling is None:
            return 0
        return 1 if self.drafted is None else DRAFTED + self.drafted


def _setting(name: str) -> Callable[[Row, Sampling], float]:
    read = attrgetter(name)
    return lambda _, sampling: read(sampling)


COLUMNS: dict[str, tuple[type[np.generic], Callable[[Row, Sampling], float]]] = {
    "slots": (np.int32, lambda row, _: row.slot),
    "positions": (np.int32, lambda row, _: row.position),
    "tokens": (np.int32, lambda row, _: row.token),
    "counts": (np.int32, lambda row, _: row.count),
    "sample_modes": (np.int32, lambda row, _: row.sample_mode),
    "adapters": (np.int32, lambda row, _: row.adapter),
    **{name: (np.int32 if SAMPLING_SETTINGS[name].whole else np.float32, _setting(name)) for name in LOGITS_PROCESSORS},
    "seeds": (np.uint64, lambda row, _: row.seed),
}
"""Type and value of each column. Sampling settings come from settings/sampling.py."""
ROW_LAYOUT = np.dtype([(name, dtype, (MAX_ROWS,)) for name, (dtype, _) in COLUMNS.items()])
PADDING = np.zeros((), ROW_LAYOUT)
PADDING["slots"] = PADDING["adapters"] = -1


def pack_rows(rows: Sequence[Row]) -> NDArray[np.int32]:
    """Columns of up to 64 rows as ROW_LAYOUT has them; padding has no slot and no adapter."""
    packed: Any = PADDING.copy()
    for name, (_, value) in COLUMNS.items():
        packed[name][: len(rows)] = [value(row, row.sampling or GREEDY) for row in rows]
    return packed.reshape(1).view(np.int32)
