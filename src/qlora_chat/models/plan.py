"""Located folders -> configs and headers read, the adapter checked, device and weight format planned.

Scope: the last step before tensors are read; every file that it reads, it reads once. Knows nothing of names or merging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qlora_chat.models import Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.cache import CacheEntry
from qlora_chat.models.folders import Base
from qlora_chat.models.part import ModelPart
from qlora_chat.models.placement import (
    DeviceMemory,
    Plan,
    WeightFormat,
    candidate_formats,
    choose_plan,
    explain_cpu_fallback,
)
from qlora_chat.settings import ModelSettings


@dataclass(frozen=True)
class LocatedModel:
    """Folders of a base and an adapter."""

    name: str
    base: ModelPart
    adapter: ModelPart | None = None
    notices: tuple[str, ...] = ()
    cached: Mapping[WeightFormat, CacheEntry] = field(default_factory=dict)
    """Usable entries, best format first, if the base is no longer here."""
    unmerged_first: bool = False
    """The adapter corrects the errors of NF4, on which it was trained: `auto` merges it only where NF4 does not fit."""


@dataclass(frozen=True)
class ResolvedModel:
    """All that loading needs to know: parts, their checked configs, and the plan."""

    name: str
    base: ModelPart
    adapter: ModelPart | None
    plan: Plan
    config: Base
    """Config of the base's folder, or of the cached entry."""
    adapter_folder: AdapterFolder | None
    cached: CacheEntry | None
    """The entry to read if the base is no longer here."""
    notices: tuple[str, ...]


def plan_model(
    located: LocatedModel, settings: ModelSettings, devices: Sequence[DeviceMemory], notify: Notify
) -> ResolvedModel:
    """Check base and adapter from their configs and headers, and choose device and weight format.

    ModelError for what does not fit together; DoesNotFit where no device has room.
    """
    entries = {each: Base.read(entry.folder, entry.weights) for each, entry in located.cached.items()}
    base = Base.read(located.base.folder) if located.base.folder else next(iter(entries.values()))
    if located.base.folder:
        base.check_weights()
    adapter = AdapterFolder.read(located.adapter.existing_folder()) if located.adapter else None
    size = adapter.bytes if adapter else 0
    if adapter:
        adapter.check(base)
    formats = tuple(entries) or candidate_formats(settings.precision, adapter is not None, settings.adapter_mode)
    if located.unmerged_first:
        formats = tuple(reversed(formats))
    plan = choose_plan(base, formats, size, devices, settings.kv_cache_dtype)
    if line := explain_cpu_fallback(plan, base, formats, size, devices, settings.kv_cache_dtype):
        notify(line)
    config, cached = entries.get(plan.weight_format, base), located.cached.get(plan.weight_format)
    return ResolvedModel(located.name, located.base, located.adapter, plan, config, adapter, cached, located.notices)
