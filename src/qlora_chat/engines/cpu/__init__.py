"""The whole forward pass in C++ on a CPU: no Python between layers, and products made for 4-bit weights.

Scope: whether this machine can have it, and how it comes about. The sources beside this file are compiled once on the
user's machine (build.py); forward.py calls the result. Elsewhere engines/llama.py computes the same through torch.
"""

from __future__ import annotations

from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.cpu.build import library
from qlora_chat.engines.cpu.forward import CpuForward, takes
from qlora_chat.models import Notify
from qlora_chat.models.weights import LlamaWeights


def compiled_forward(weights: LlamaWeights, cache: KVCache, notify: Notify) -> CpuForward | None:
    """The compiled pass over these weights; None on a card, without a compiler or AVX2, or for products it does not know."""
    if not takes(weights):
        return None
    found = library(notify)
    return CpuForward(found, weights, cache) if found else None
