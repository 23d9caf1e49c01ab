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

from qlora_chat.engines.core.sampler import SamplerInput
from qlora_chat.settings import LOGITS_PROCESSORS, SAMPLING_SETTINGS


class _SamplerInput(ctypes.Structure):
    """SamplerInput of csrc/sampler.h."""

    _fields_ = (
        *((name, ctypes.c_int if SAMPLING_SETTINGS[name].whole else ctypes.c_float) for name in LOGITS_PROCESSORS),
        ("seen", ctypes.c_void_p),
        ("draw", ctypes.c_double),
    )


_processors = attrgetter(*LOGITS_PROCESSORS)


class CpuSampler:
    """The sampler of core.sampler without torch, whose threads would go on spinning on the core that the next pass needs."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._sample = library.sample_tokens
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self._sample.restype, self._sample.argtypes = integer, [integer, integer, pointer, pointer, pointer]

    def __call__(self, logits: Tensor, inputs: Sequence[SamplerInput]) -> list[int]:
        """Next token of each row of logits (R, V), or NOT_FINITE. MemoryError without room."""
        logits = logits.to("cpu", torch.float32).contiguous()
        rows, vocabulary = logits.shape
        packed = (_SamplerInput * rows)(*map(_packed, inputs))
        tokens = array("q", bytes(8 * rows))
        if not self._sample(rows, vocabulary, logits.data_ptr(), packed, tokens.buffer_info()[0]):
            raise MemoryError("no memory to sample a token")
        return tokens.tolist()


def _packed(row: SamplerInput) -> _SamplerInput:
    return _SamplerInput(*_processors(row.sampling), None if row.seen is None else row.seen.data_ptr(), row.draw)
