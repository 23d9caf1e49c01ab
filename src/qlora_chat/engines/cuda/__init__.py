"""The CUDA path of the in-process engine: weights in tiles, a decode step that is one graph, sampling on the device.

Scope: opening it. CannotPack or KernelError is raised for a model or card that it does not support before the weights are
touched, and WeightsConsumed after that; the engine then uses the eager pass.
"""

from __future__ import annotations

from pathlib import Path

import torch

from qlora_chat.engines.core.kv_cache import KVCache, fitting_slots
from qlora_chat.engines.core.prompt_lookup import PassCosts
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.kernels import check_device
from qlora_chat.engines.cuda.policy import StepLimits
from qlora_chat.engines.cuda.prefill.activations import padded_row_counts
from qlora_chat.engines.cuda.prefill.reader import Prefill
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.cuda.warmup import Warmup
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters, own_adapter_bytes
from qlora_chat.engines.cuda.weights.model import check_supported, pack_weights
from qlora_chat.engines.cuda.weights.packing import CannotPack
from qlora_chat.models.weights.llama import LlamaWeights
from qlora_chat.settings import KVCacheDtype


class WeightsConsumed(RuntimeError):
    """The kernels do not support this model, and part of its weights has been freed: it has to be loaded again."""


def open_cuda(
    weights: LlamaWeights,
    slots: int | None,
    cache_folder: Path | None,
    kv_cache_dtype: KVCacheDtype = "auto",
    adapter_bytes: int = 0,
) -> tuple[CudaScheduler, KVCache]:
    """Pack the weights, which cannot be used for anything else afterwards, and build cache and scheduler over them. The cache
    is for `slots` chats, or for as many as fit next to `adapter_bytes` of adapters still to be loaded. CannotPack, KernelError
    or WeightsConsumed for a model or card that is not supported."""
    if weights.dtype != torch.bfloat16:
        raise CannotPack(f"its compute type is {weights.dtype}; the kernels compute in bfloat16")
    check_supported(weights)
    check_device(cache_folder)
    cache_dtype = torch.int8 if kv_cache_dtype == "int8" else None
    try:
        limits, packed = StepLimits(), pack_weights(weights)
        reserve = CudaAdapters.copies * adapter_bytes + (CudaAdapters.copies - 1) * own_adapter_bytes(packed)
        cache = KVCache(weights, slots or fitting_slots(weights, cache_dtype, int(reserve)), cache_dtype)
        decoder = Decoder(packed, cache, cache_folder)
        adapters = CudaAdapters(packed, decoder, cache)
        prefill = Prefill(packed, decoder.dequantize, cache, decoder.rope_cos_sin, adapters.of_slot, decoder.stream)
        rows = max(limits.step_rows_idle, len(cache.slots))
        lengths = padded_row_counts(min(limits.pass_tokens, weights.shape.window))
        warmup = Warmup(decoder, adapters, rows, prefill.warm_up, lengths)
        return CudaScheduler(decoder, prefill.begin, cache, adapters, PassCosts(limits.step_costs), warmup, limits), cache
    except (CannotPack, KernelError) as problem:
        raise WeightsConsumed(str(problem)) from problem
