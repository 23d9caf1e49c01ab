"""The whole forward pass in C++ on a CPU: no Python between layers, and matmuls made for 4-bit weights.

Scope: opens the pass where this machine supports it. build.py compiles the sources in csrc/ once on the user's machine;
forward.py calls the result. Elsewhere engines/eager computes the same with torch.
"""

from __future__ import annotations

import torch

from qlora_chat.engines.core.kv_cache import KVCache, fitting_slots
from qlora_chat.engines.cpu.build import library
from qlora_chat.engines.cpu.forward import CpuForward, supports
from qlora_chat.models import Notify
from qlora_chat.models.weights.llama import LlamaWeights


def open_cpu(weights: LlamaWeights, slots: int | None, notify: Notify) -> CpuForward | None:
    """The compiled pass over these weights with a cache of its own; None on a card, without a compiler or AVX2, and for
    products that it does not support."""
    loaded = library(notify) if supports(weights) else None
    if loaded is None:
        return None
    dtype = compiled_cache_dtype(weights)
    return CpuForward(loaded, weights, KVCache(weights, slots or fitting_slots(weights, dtype), dtype))


def compiled_forward(weights: LlamaWeights, cache: KVCache, notify: Notify) -> CpuForward | None:
    """The compiled pass over an existing cache; None where open_cpu gives None."""
    loaded = library(notify) if supports(weights) else None
    return CpuForward(loaded, weights, cache) if loaded else None


def compiled_cache_dtype(weights: LlamaWeights) -> torch.dtype:
    """float16 for the keys and values of bf16 and 4-bit weights: half the memory to read, and three bits more than bf16."""
    return torch.float32 if weights.dtype == torch.float32 else torch.float16
