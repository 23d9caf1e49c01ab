"""The whole of opening a model, on one screen.

    names -> folders -> a plan that fits -> merged once and kept -> read

Scope: ties the parts together. After the first start it imports torch, tokenizers and safetensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qlora_chat.models import LoadedModel, ModelError, ModelInfo, Notify
from qlora_chat.models.cache import Cache, weights_sha256
from qlora_chat.models.folders import RECORD, read_json
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import Source, resolve, resolve_adapter
from qlora_chat.models.placement import DeviceMemory, candidate_formats, detect_devices
from qlora_chat.models.prepare import PreparedModel, prepare
from qlora_chat.models.weights.llama import build
from qlora_chat.settings import ModelSettings, cache_folder, hub_cache_folder, hub_is_offline

DEFAULT_FORMAT = "guanaco"
ADAPTER_HASHED_UP_TO = 2**30
"""Every record says which adapter answered, and one that was trained again has the same name: worth half a second."""


def load(
    settings: ModelSettings,
    notify: Notify,
    dtype: torch.dtype = torch.bfloat16,
    places: Sequence[DeviceMemory] | None = None,
) -> LoadedModel:
    """Find, fetch, merge and load. ModelError says what is in the way.

    Tests hold bf16 weights in another dtype, and measurements give the places that a smaller machine would have.
    """
    cache = Cache(cache_folder(), notify)
    places = detect_devices(settings.device) if places is None else places
    source = resolve(settings, Hub(hub_cache_folder(), hub_is_offline()), cache, places, notify)
    ways = candidate_formats(settings.precision, source.adapter is not None, settings.adapter_mode)
    ready = prepare(source, ways, places, cache, notify, settings.kv_cache_dtype)
    notices = (*source.notices, *ready.notices)
    for line in notices:
        notify(line)
    ready.tokenizer.bos_id = ready.special.bos
    beside = tuple((name, adapter_folder(text, notify)) for name, text in settings.adapters)
    info = _info(settings, source, ready, dtype)
    if beside and not settings.prompt_format:
        info = replace(info, prompt_format=_declared_by([beside[0][1]]) or info.prompt_format)
    weights = build(ready.tensors, ready.base.shape, _device(ready), dtype, ready.adapter)
    return LoadedModel(weights, ready.tokenizer, replace(info, notices=notices), ready.base, beside)


def adapter_folder(text: str, notify: Notify) -> Path:
    """The folder of an adapter by Hub id or path, fetched or converted where that is needed."""
    cache, hub = Cache(cache_folder(), notify), Hub(hub_cache_folder(), hub_is_offline())
    folder = resolve_adapter(text, hub, cache, notify).folder
    if folder is None:
        raise ModelError(f"the adapter {text} is no longer on this machine")
    return folder


def _device(ready: PreparedModel) -> torch.device:
    return torch.device("cuda", 0) if ready.plan.place.device == "cuda" else torch.device("cpu")


def _info(settings: ModelSettings, source: Source, ready: PreparedModel, dtype: torch.dtype) -> ModelInfo:
    held = ready.plan.held
    return ModelInfo(
        name=source.name,
        base=source.base.name,
        adapter=source.adapter.name if source.adapter else None,
        precision="fp32" if held == "bf16" and dtype == torch.float32 else held,
        device=ready.plan.place.device,
        window=ready.base.shape.window,
        prompt_format=settings.prompt_format or declared_format(source) or DEFAULT_FORMAT,
        stop_token_ids=ready.special.stops,
        base_sha256=weights_sha256(source.base.folder),
        adapter_sha256=weights_sha256(source.adapter.folder, ADAPTER_HASHED_UP_TO) if source.adapter else None,
    )


def declared_format(source: Source) -> str | None:
    """The prompt format that an adapter says it was tuned on, or a merged model says of itself."""
    return _declared_by([source.adapter.folder if source.adapter else None, source.base.folder])


def _declared_by(folders: Sequence[Path | None]) -> str | None:
    declared = (read_json(folder / RECORD).get("prompt_format") for folder in folders if folder)
    return next((name for name in declared if isinstance(name, str)), None)
