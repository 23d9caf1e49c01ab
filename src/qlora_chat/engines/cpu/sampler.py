"""The compiled sampler: same results as engines/core/sampler.py, for logits in this machine's memory.

Scope: passes logits and settings into csrc/sampler.h, and tokens out of it. Knows no chats.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from qlora_chat.engines.core.c_declarations import structure
from qlora_chat.engines.core.sampler import SamplerInput
from qlora_chat.engines.cpu.build import SOURCES

_SamplerInput = structure("SamplerInput", (SOURCES / "sampler.h").read_text(encoding="utf-8"))
*_names, _, _ = (name for name, *_ in _SamplerInput._fields_)
_processors = attrgetter(*_names)
"""Values of Sampling in the structure's order; the fields behind them are `seen` and `draw`."""


class CpuSampler:
    """The sampler of core.sampler without torch, whose threads would go on spinning on the core that the next pass needs."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._sample = library.sample_tokens

    def __call__(self, logits: Tensor, inputs: Sequence[SamplerInput]) -> list[int]:
        """Next token of each row of logits (R, V), or NOT_FINITE. MemoryError without room."""
        logits = logits.to("cpu", torch.float32).contiguous()
        rows, vocabulary = logits.shape
        packed = (_SamplerInput * rows)(*map(_packed, inputs))
        tokens = array("q", bytes(8 * rows))
        if not self._sample(rows, vocabulary, logits.data_ptr(), packed, tokens.buffer_info()[0]):
            raise MemoryError("no memory to sample a token")
        return tokens.tolist()


def _packed(row: SamplerInput) -> ctypes.Structure:
    return _SamplerInput(*_processors(row.sampling), None if row.seen is None else row.seen.data_ptr(), row.draw)
