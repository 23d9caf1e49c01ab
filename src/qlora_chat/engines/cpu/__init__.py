"""The whole forward pass in C++ on a CPU: no Python between layers, and products made for 4-bit weights.

Scope: whether this machine can have it, and how it comes about. The sources beside this file are compiled once on the
user's machine (build.py); forward.py calls the result. Elsewhere engines/eager/forward.py computes the same through torch.
"""

from __future__ import annotations

import ctypes

import torch

from qlora_chat.engines.core.kv_cache import KVCache, fitting_slots
from qlora_chat.engines.cpu.build import library
from qlora_chat.engines.cpu.forward import CpuForward, takes
from qlora_chat.models import Notify
from qlora_chat.models.weights.llama import LlamaWeights


def open_cpu(weights: LlamaWeights, slots: int | None, notify: Notify) -> CpuForward | None:
    """The compiled pass over these weights with a cache of its own; None on a card, without a compiler or AVX2, or for
    products it does not know."""
    found = _library(weights, notify)
    if found is None:
        return None
    dtype = compiled_cache_dtype(weights)
    return CpuForward(found, weights, KVCache(weights, slots or fitting_slots(weights, dtype), dtype))


def compiled_forward(weights: LlamaWeights, cache: KVCache, notify: Notify) -> CpuForward | None:
    """The same over a cache that there is already."""
    found = _library(weights, notify)
    return CpuForward(found, weights, cache) if found else None


def compiled_cache_dtype(weights: LlamaWeights) -> torch.dtype:
    """Half floats for the keys and values of bf16 and 4-bit weights: half the memory to read, and three bits more than the
    bf16 that a card keeps."""
    return torch.float32 if weights.dtype == torch.float32 else torch.float16


def _library(weights: LlamaWeights, notify: Notify) -> ctypes.CDLL | None:
    return library(notify) if takes(weights) else None
