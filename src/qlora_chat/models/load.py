"""The whole of opening a model.

    names -> folders -> checks and a plan that fits -> converted once and cached -> weights in memory

Scope: ties the steps together; each passes on what the next needs. After the first start it imports torch, tokenizers
and safetensors only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qlora_chat.chat_templates.known import FormatChoice
from qlora_chat.models import LoadedModel, ModelInfo, Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.cache import Cache
from qlora_chat.models.chat_format import format_sources
from qlora_chat.models.hub import Hub
from qlora_chat.models.part import ModelPart
from qlora_chat.models.placement import DeviceMemory, DoesNotFit, detect_devices, needed_bytes, without
from qlora_chat.models.plan import ResolvedModel
from qlora_chat.models.prepare import PreparedModel, prepare
from qlora_chat.models.resolve import resolve
from qlora_chat.models.weights.llama import build
from qlora_chat.settings import KVCacheDtype, ModelSettings, cache_folder, hub_cache_folder, hub_is_offline

ADAPTER_HASHED_UP_TO = 2**30
"""Bytes. Every record says which adapter answered, and one that was trained again has the same name: worth half a second."""


def load(
    settings: ModelSettings,
    notify: Notify,
    dtype: torch.dtype = torch.bfloat16,
    devices: Sequence[DeviceMemory] | None = None,
) -> LoadedModel:
    """Find, fetch, merge and load. ModelError with the remedy if that is not possible.

    Tests load bf16 weights in another dtype, and measurements pass the devices of a smaller machine.
    """
    cache, hub = Cache(cache_folder(), notify), Hub(hub_cache_folder(), hub_is_offline())
    devices = detect_devices(settings.device) if devices is None else devices
    resolved = resolve(settings, hub, cache, devices, notify)
    prepared = prepare(resolved, cache)
    notices = (*resolved.notices, *prepared.notices)
    for line in notices:
        notify(line)
    part, adapter = _first_adapter(resolved)
    chosen = format_sources(resolved.base, resolved.config, part, adapter and adapter.record).choose(settings.prompt_format)
    info = _info(resolved, prepared, chosen, dtype, notices, settings.kv_cache_dtype)
    unmerged = tuple((name, folder) for name, _, folder in resolved.named_adapters)
    device = torch.device("cuda", 0) if resolved.plan.device == "cuda" else torch.device("cpu")
    weights = build(prepared.tensors, prepared.base.shape, device, dtype, prepared.adapter)
    text = prepared.text
    return LoadedModel(weights, text.tokenizer, info, prepared.base, unmerged, text.special.eos)


def fits_beside(settings: ModelSettings, loaded: ModelInfo, notify: Notify) -> bool:
    """True if a model gets the device and form beside a loaded one that it would get without it. The errors of `load` where it
    would not fit even then, or cannot be found."""
    cache, hub = Cache(cache_folder(), notify), Hub(hub_cache_folder(), hub_is_offline())
    now = detect_devices(settings.device)
    alone = resolve(settings, hub, cache, without(loaded, now), notify)
    try:
        return resolve(settings, hub, cache, now, lambda line: None).plan == alone.plan
    except DoesNotFit:
        return False


def _first_adapter(resolved: ResolvedModel) -> tuple[ModelPart | None, AdapterFolder | None]:
    """The adapter whose prompt format counts: the model's own, else the first that requests can choose."""
    if resolved.adapter:
        return resolved.adapter, resolved.adapter_folder
    return next(((part, folder) for _, part, folder in resolved.named_adapters), (None, None))


def _info(
    resolved: ResolvedModel,
    prepared: PreparedModel,
    chosen: FormatChoice,
    dtype: torch.dtype,
    notices: tuple[str, ...],
    kv_cache_dtype: KVCacheDtype,
) -> ModelInfo:
    plan = resolved.plan
    adapter_bytes = sum(
        each.bytes for each in (resolved.adapter_folder, *(each for _, _, each in resolved.named_adapters)) if each
    )
    return ModelInfo(
        name=resolved.name,
        base=resolved.base.name,
        adapter=resolved.adapter.name if resolved.adapter else None,
        precision="fp32" if plan.weight_format == "bf16" and dtype == torch.float32 else plan.weight_format,
        device=plan.device,
        window=prepared.base.shape.window,
        prompt_format=chosen.name,
        format=chosen,
        stop_token_ids=prepared.text.special.stops,
        notices=notices,
        base_sha256=resolved.base.weights_sha256(),
        base_form=resolved.base_form,
        adapter_sha256=resolved.adapter.weights_sha256(ADAPTER_HASHED_UP_TO) if resolved.adapter else None,
        predicted_bytes=needed_bytes(prepared.base, plan.weight_format, adapter_bytes, plan.device, kv_cache_dtype),
        merge=prepared.merge,
    )
