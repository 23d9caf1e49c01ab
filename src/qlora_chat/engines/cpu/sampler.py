"""Choosing tokens in the compiled library: what engines/core/sampler.py does, for logits that lie in this machine's memory.

Scope: the way of logits and settings into choose.h and of tokens out of it. Knows no chats.
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


class _Choice(ctypes.Structure):
    """Choice in choose.h."""

    _fields_ = (
        *((name, ctypes.c_int if SAMPLING_SETTINGS[name].whole else ctypes.c_float) for name in LOGITS_PROCESSORS),
        ("seen", ctypes.c_void_p),
        ("draw", ctypes.c_double),
    )


_processors = attrgetter(*LOGITS_PROCESSORS)


class CpuSampler:
    """sampling.choose without torch: its threads would go on spinning on the core that the next pass wants."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._choose = library.choose_tokens
        pointer, whole = ctypes.c_void_p, ctypes.c_int
        self._choose.restype, self._choose.argtypes = whole, [whole, whole, pointer, pointer, pointer]

    def __call__(self, logits: Tensor, choices: Sequence[SamplerInput]) -> list[int]:
        """The next token of each row of logits (R, V), or NOT_FINITE. MemoryError if there is no room."""
        logits = logits.to("cpu", torch.float32).contiguous()
        rows, vocabulary = logits.shape
        settings = (_Choice * rows)(*map(_packed, choices))
        tokens = array("q", bytes(8 * rows))
        if not self._choose(rows, vocabulary, logits.data_ptr(), settings, tokens.buffer_info()[0]):
            raise MemoryError("no memory to choose a token")
        return tokens.tolist()


def _packed(choice: SamplerInput) -> _Choice:
    sampling = choice.sampling
    seen = None if choice.seen is None else choice.seen.data_ptr()
    return _Choice(*_processors(sampling), seen, choice.draw)
