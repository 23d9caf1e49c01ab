"""The CUDA path of the in-process engine: weights in tiles, a decode step that is one graph, sampling on the device.

Scope: opening it. Anything that it cannot hold or compile raises CannotPack or KernelError, before the weights it was given
are touched, and the engine goes on with the eager pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_chat.engines.cache import KVCache
    from qlora_chat.engines.cuda.scheduler import CudaScheduler
    from qlora_chat.engines.llama import Span
    from qlora_chat.models.weights import LlamaWeights
    from qlora_chat.settings import KVCacheDtype


def open_cuda(
    weights: LlamaWeights, slots: int | None, cache_folder: Path | None, kv_cache_dtype: KVCacheDtype = "auto"
) -> tuple[CudaScheduler, KVCache]:
    """Pack the weights (they cannot be used for anything else afterwards), make a cache for `slots` chats, or as many as
    fit, and the scheduler over both. CannotPack or KernelError if this model or card is not for it."""
    import torch

    from qlora_chat.engines.cache import KVCache, fitting_slots
    from qlora_chat.engines.cuda.adapters import CudaAdapters
    from qlora_chat.engines.cuda.kernels import try_kernels
    from qlora_chat.engines.cuda.packing import CannotPack
    from qlora_chat.engines.cuda.prompts import PromptReader
    from qlora_chat.engines.cuda.scheduler import CudaScheduler
    from qlora_chat.engines.cuda.step import Decoder
    from qlora_chat.engines.cuda.weights import packed_weights

    if weights.dtype != torch.bfloat16:
        raise CannotPack(f"its weights are to be computed with in {weights.dtype}; the kernels do so in bfloat16")
    try_kernels(cache_folder)
    packed = packed_weights(weights)
    dtype = torch.int8 if kv_cache_dtype == "int8" else None
    cache = KVCache(weights, slots or fitting_slots(weights, dtype), dtype)
    decoder = Decoder(packed, cache, cache_folder)
    adapters = CudaAdapters(packed, decoder, cache)
    reader = PromptReader(packed, decoder.unpack, cache, decoder.kernels, decoder.turns, adapters.of)

    def read(spans: Sequence[Span]) -> None:
        with torch.cuda.stream(decoder.stream):
            reader(spans)

    return CudaScheduler(decoder, read, cache, adapters), cache
