"""Steps that begin every export, and a measured merge: the model in bf16, and the adapters that stay unmerged, by name.

Scope: names and folders, before any weight is read. Knows no target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_chat.models import ModelError, Notify, find_adapter
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.cache import Cache
from qlora_chat.models.hub import Hub
from qlora_chat.models.placement import DoesNotFit, detect_devices
from qlora_chat.models.resolve import ResolvedModel, resolve
from qlora_chat.settings import ModelSettings, hub_cache_folder, hub_is_offline


def resolve_in_bf16(purpose: str, settings: ModelSettings, cache: Cache) -> ResolvedModel:
    """The model of the settings in bf16. ModelError where it does not fit; `purpose` is what needs it so."""
    settings, hub = replace(settings, precision="bf16", adapter_mode="auto"), Hub(hub_cache_folder(), hub_is_offline())
    try:
        return resolve(settings, hub, cache, detect_devices(settings.device), cache.notify)
    except DoesNotFit as problem:
        advice = "free some memory"
        if settings.adapter:
            advice += ", or serve the adapter unmerged: serve --base --adapter"
        raise ModelError(f"{purpose} needs the model in bf16, and {problem.gaps}; {advice}") from problem


def source_names(model: ResolvedModel, adapters: Mapping[str, AdapterFolder]) -> dict[str, Any]:
    """Names of the base, of the adapter and of those that stay unmerged, for the record of an export."""
    return {
        "base": model.base.name,
        "base_revision": model.base.revision,
        "adapter": model.adapter.name if model.adapter else None,
        "adapters": sorted(adapters),
    }


def unmerged_adapters(model: ResolvedModel, more: Mapping[str, str], notify: Notify) -> dict[str, AdapterFolder]:
    """The model's own adapter and others, by their names on the server. ModelError for an invalid name, and for none."""
    adapters: dict[str, AdapterFolder] = {}
    if model.adapter and model.adapter_folder:
        adapters[tidy(model.adapter.name)] = model.adapter_folder
    for name, text in more.items():
        if tidy(name) != name or name in adapters:
            raise ModelError(f"--lora names an adapter {name!r}; letters, digits, -, _ and . will do, each name once")
        adapters[name] = AdapterFolder.read(find_adapter(text, notify))
    if not adapters:
        raise ModelError("unmerged adapters are to be exported, but there is none: give --adapter, or --lora NAME=ID_OR_FOLDER")
    return adapters


def tidy(name: str) -> str:
    """A name that needs no quotes in a command or a URL."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "model"
