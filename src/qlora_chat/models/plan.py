"""Located folders -> configs and headers read, the adapter checked, device and weight format planned.

Scope: the last step before tensors are read; every file that it reads, it reads once. Knows nothing of names or merging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qlora_chat.models import Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.trained_on import TrainedOn
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
from qlora_chat.settings import BaseForm, ModelSettings

Entries = Mapping[WeightFormat, tuple[CacheEntry, ...]]


@dataclass(frozen=True)
class LocatedModel:
    """Folders of a base and of adapters."""

    name: str
    base: ModelPart
    adapter: ModelPart | None = None
    notices: tuple[str, ...] = ()
    cached: Entries = field(default_factory=dict)
    """Usable entries, best format first and newest entry first, if the base is no longer here."""
    named_adapters: tuple[tuple[str, ModelPart], ...] = ()
    """(name, folder) of adapters that requests choose from."""


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
    base_form: BaseForm | None = None
    """Form of the base that adapters are applied to; None without adapters."""
    trained_on: TrainedOn | None = None
    """Knowledge of the adapter's training; None without an adapter."""
    named_adapters: tuple[tuple[str, ModelPart, AdapterFolder], ...] = ()

    @property
    def through_nf4(self) -> bool:
        """True if 16-bit weights are rounded to NF4's values, on which the adapters were trained, before anything is added."""
        is_16_bit = not self.config.is_nf4 and not self.config.is_int8
        return self.plan.weight_format == "bf16" and self.base_form == "nf4" and is_16_bit and self.cached is None


def plan_model(
    located: LocatedModel, settings: ModelSettings, devices: Sequence[DeviceMemory], notify: Notify
) -> ResolvedModel:
    """Check base and adapters from their configs and headers, and choose the base's form, device and weight format.

    ModelError for what does not fit together; DoesNotFit where no device has room.
    """
    adapter = AdapterFolder.read(located.adapter.existing_folder()) if located.adapter else None
    named = tuple((name, part, AdapterFolder.read(part.existing_folder())) for name, part in located.named_adapters)
    training = _training(located, adapter or next((each for _, _, each in named), None), settings)
    form = training and (training.form or "16-bit")
    entries: dict[WeightFormat, CacheEntry] = {each: _of_form(form, choices) for each, choices in located.cached.items()}
    configs: dict[WeightFormat, Base] = {each: Base.read(entry.folder, entry.weights) for each, entry in entries.items()}
    base = Base.read(located.base.folder) if located.base.folder else next(iter(configs.values()))
    if located.base.folder:
        base.check_weights()
    if adapter:
        adapter.check(base)
    unmerged_first = training is not None and training.form == "nf4" and (adapter is None or not adapter.merge_only_on(base))
    formats: tuple[WeightFormat, ...] = candidate_formats(
        settings.precision, adapter is not None, settings.adapter_mode, unmerged_first=unmerged_first
    )
    if entries:
        formats = tuple(each for each in formats if each in entries)
    size = adapter.bytes if adapter else 0
    plan = choose_plan(base, formats, size, devices, settings.kv_cache_dtype)
    if line := explain_cpu_fallback(plan, base, formats, size, devices, settings.kv_cache_dtype):
        notify(line)
    config, cached = configs.get(plan.weight_format, base), entries.get(plan.weight_format)
    if form and (plan.weight_format != "bf16" or base.is_nf4):
        form = "nf4"
    elif form and cached:
        form = _form_of(cached)
    return ResolvedModel(
        located.name, located.base, located.adapter, plan, config, adapter, cached, located.notices, form, training, named
    )


def _training(located: LocatedModel, first: AdapterFolder | None, settings: ModelSettings) -> TrainedOn | None:
    """The form of the base that the adapters were trained on; None without any. Named ones share a base: the first decides."""
    part = located.adapter or next((each for _, each in located.named_adapters), None)
    if first is None or part is None:
        return None
    if settings.base_form != "auto":
        return TrainedOn(settings.base_form, "--base-form", is_setting=True)
    return first.trained_on(part.name)


def _form_of(entry: CacheEntry) -> BaseForm:
    """The form of the base in a merge; earlier versions merged into the weights as they were stored, and recorded none."""
    return "nf4" if entry.record.get("base_form") == "nf4" else "16-bit"


def _of_form(form: BaseForm | None, entries: Sequence[CacheEntry]) -> CacheEntry:
    """The newest entry of that form, else the newest."""
    return next((each for each in entries if _form_of(each) == form), entries[0])
