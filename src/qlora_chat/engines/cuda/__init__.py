"""The CUDA path of the in-process engine: weights in tiles, a decode step that is one graph, sampling on the device.

Scope: opening it. What it cannot hold or compile raises CannotPack or KernelError before the weights it was given are touched,
and WeightsConsumed after that; the engine goes on with the eager pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qlora_chat.engines.core.kv_cache import KVCache
    from qlora_chat.engines.cuda.scheduler import CudaScheduler
    from qlora_chat.models.weights.llama import LlamaWeights
    from qlora_chat.settings import KVCacheDtype


class WeightsConsumed(RuntimeError):
    """The kernels cannot have this model, and part of what they were given has been freed: it has to be read again."""


def open_cuda(
    weights: LlamaWeights,
    slots: int | None,
    cache_folder: Path | None,
    kv_cache_dtype: KVCacheDtype = "auto",
    adapters: int = 0,
) -> tuple[CudaScheduler, KVCache]:
    """Pack the weights (they cannot be used for anything else afterwards), make a cache for `slots` chats, or as many as
    fit beside `adapters` bytes of adapters that are still to be read, and the scheduler over both. CannotPack, KernelError or
    WeightsConsumed if this model or card is not for it."""
    import torch

    from qlora_chat.engines.cuda.kernels import try_kernels
    from qlora_chat.engines.cuda.runtime.driver import KernelError
    from qlora_chat.engines.cuda.weights.model import check
    from qlora_chat.engines.cuda.weights.packing import CannotPack

    if weights.dtype != torch.bfloat16:
        raise CannotPack(f"its weights are to be computed with in {weights.dtype}; the kernels do so in bfloat16")
    check(weights)
    try_kernels(cache_folder)
    try:
        return _opened(weights, slots, cache_folder, torch.int8 if kv_cache_dtype == "int8" else None, adapters)
    except (CannotPack, KernelError) as problem:
        raise WeightsConsumed(str(problem)) from problem


def _opened(
    weights: LlamaWeights, slots: int | None, cache_folder: Path | None, cache_dtype: torch.dtype | None, adapters_bytes: int
) -> tuple[CudaScheduler, KVCache]:
    from qlora_chat.engines.core.kv_cache import KVCache, fitting_slots
    from qlora_chat.engines.core.prompt_lookup import PassCosts
    from qlora_chat.engines.cuda.decode.graph import Decoder
    from qlora_chat.engines.cuda.prefill.activations import filled_up_to
    from qlora_chat.engines.cuda.prefill.reader import PromptReader
    from qlora_chat.engines.cuda.scheduler import READ_AT_ONCE, ROWS_AT_ONCE, STEP_COSTS, CudaScheduler
    from qlora_chat.engines.cuda.warmup import Preparing
    from qlora_chat.engines.cuda.weights.adapters import CudaAdapters, own_bytes
    from qlora_chat.engines.cuda.weights.model import packed_weights

    packed = packed_weights(weights)
    to_come = CudaAdapters.copies * adapters_bytes + (CudaAdapters.copies - 1) * own_bytes(packed)
    cache = KVCache(weights, slots or fitting_slots(weights, cache_dtype, int(to_come)), cache_dtype)
    decoder = Decoder(packed, cache, cache_folder)
    adapters = CudaAdapters(packed, decoder, cache)
    reader = PromptReader(packed, decoder.unpack, cache, decoder.kernels, decoder.turns, adapters.of, decoder.stream)
    widest, lengths = max(ROWS_AT_ONCE, len(cache.slots)), filled_up_to(min(READ_AT_ONCE, weights.shape.window))
    preparing = Preparing(decoder, adapters, widest, reader.rehearse, lengths)
    return CudaScheduler(decoder, reader.begin, cache, adapters, PassCosts(STEP_COSTS), preparing), cache
