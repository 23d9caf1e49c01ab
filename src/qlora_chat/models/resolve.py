"""Settings -> one resolved model.

Scope: which model the settings mean, and the preferences of `auto`. locate.py turns names into folders, and plan.py checks
and plans what is in them; no weight is read. Knows nothing of merging.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_chat.models.cache import Cache, CacheEntry, Record
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import (
    BUNDLED_ADAPTER,
    BUNDLED_BASE,
    DEMO,
    GUANACO,
    GUANACO_BASE,
    WHOLE_BASE,
    fetch_guanaco_adapter,
    local_base,
    local_guanaco_adapter,
    local_part,
    local_smollm2_base,
    locate_adapter,
    without_pickle,
)
from qlora_chat.models.part import ModelPart
from qlora_chat.models.placement import GIB, DeviceMemory, WeightFormat, candidate_formats
from qlora_chat.models.plan import Entries, LocatedModel, ResolvedModel, plan_model
from qlora_chat.models.smollm2 import INSTALL, SMOLLM2, SMOLLM2_BASE, smollm2_adapter
from qlora_chat.settings import ModelSettings

FREE_CARD_BYTES = 6 * GIB
FREE_CARD_BYTES_BF16 = 16 * GIB
"""Free memory of a card for which `auto` fetches the 7B."""
TOY = (
    f"{DEMO} is a 45 M-parameter toy that comes with the program to show how everything works: fluent, and often wrong. "
    "Built with Llama."
)


def demo(reason: str | None = None) -> LocatedModel:
    """The bundled model; `reason` tells the user why no other model answers."""
    notices = (TOY,) if reason is None else (TOY, reason)
    return LocatedModel(f"{DEMO} (demo)", BUNDLED_BASE, BUNDLED_ADAPTER, notices)


def smollm2_with_adapter(base: ModelPart, reason: str | None = None) -> LocatedModel:
    """The base of smollm2 with the bundled adapter, or alone in a copy of the program that comes without the adapter."""
    adapter = smollm2_adapter()
    alone = () if adapter else ("this copy of the program comes without smollm2's adapter: the base answers alone",)
    notices = (*([reason] if reason else []), *alone)
    return LocatedModel(f"SmolLM2-135M ({SMOLLM2})", base, adapter, notices)


def resolve(settings: ModelSettings, hub: Hub, cache: Cache, devices: Sequence[DeviceMemory], notify: Notify) -> ResolvedModel:
    """The model of the settings: located, fetched if necessary, checked and planned. ModelError with the remedy."""
    resolver = _Resolver(settings, hub, cache, devices, notify)
    if settings.base:
        located = resolver.named(settings.base)
    elif settings.model == GUANACO:
        located = resolver.guanaco(before_fetching=lambda: None)
    elif settings.model == SMOLLM2:
        located = resolver.smollm2(may_fetch=True)
    elif settings.model == "demo":
        located = demo()
    else:
        return resolver.auto()
    return plan_model(located, settings, devices, notify)


@dataclass(frozen=True)
class _Resolver:
    settings: ModelSettings
    hub: Hub
    cache: Cache
    devices: Sequence[DeviceMemory]
    notify: Notify

    def auto(self) -> ResolvedModel:
        """guanaco-7b if it is here and fits, or can be fetched for a card; else smollm2 if it is here; else the demo.

        One line says which, why, and how to get the better one.
        """
        try:
            chosen = self._planned(self.guanaco(self._check_worth_fetching))
            self.notify(f"{GUANACO} answers: it is on this machine and fits (for another: --model, or --base and --adapter)")
            return chosen
        except ModelError as problem:
            left_out = f"{GUANACO} was left out: {problem} (to get the 7B: qlora-chat serve --model {GUANACO})"
        try:
            return self._planned(self.smollm2(f"{SMOLLM2} answers, because {left_out}"))
        except ModelError as problem:
            reason = f"The bundled demo answers, because {left_out}; and {SMOLLM2}, which is far better than it: {problem}"
            return self._planned(demo(reason))

    def _planned(self, located: LocatedModel) -> ResolvedModel:
        return plan_model(located, self.settings, self.devices, self.notify)

    def smollm2(self, reason: str | None = None, *, may_fetch: bool = False) -> LocatedModel:
        """smollm2 with the bundled adapter; `reason` tells the user why no larger model answers."""
        base = local_smollm2_base(WHOLE_BASE, self.hub, self.cache)
        if base is None:
            if self.hub.offline or not may_fetch:
                raise ModelError(f"its weights are not on this machine; to get them: {INSTALL}")
            base = self.hub.fetch(SMOLLM2_BASE, WHOLE_BASE.select, self.notify)
        return smollm2_with_adapter(base, reason)

    def named(self, base_text: str) -> LocatedModel:
        """A base and adapters by their names."""
        adapter = self._adapter(self.settings.adapter) if self.settings.adapter else None
        others = tuple((name, self._adapter(text)) for name, text in self.settings.adapters)
        found = local_base(base_text, WHOLE_BASE, self.hub, self.cache, self.notify)
        merges = self._merges(found, adapter) if isinstance(found, str) else {}
        base = self._missing_base(found, merges) if isinstance(found, str) else found
        notices = (TOY,) if base is BUNDLED_BASE else ()
        return LocatedModel((adapter or base).name, base, adapter, notices, merges, others)

    def _adapter(self, text: str) -> ModelPart:
        return locate_adapter(text, self.hub, self.cache, self.notify)

    def guanaco(self, before_fetching: Callable[[], None]) -> LocatedModel:
        """guanaco-7b; `before_fetching` is called if a download is necessary, and may refuse it."""
        adapter = local_guanaco_adapter(self.hub, self.cache)
        base = local_part(GUANACO_BASE, WHOLE_BASE, self.hub)
        merges = {} if base or adapter is None else self._merges(GUANACO_BASE, adapter)
        if adapter is None or not (base or merges):
            before_fetching()
        adapter = without_pickle(adapter or fetch_guanaco_adapter(self.hub, self.notify), self.cache)
        if not base and not merges:  # a merge of an adapter that was only now fetched or converted
            merges = self._merges(GUANACO_BASE, adapter)
        return LocatedModel(GUANACO, base or self._missing_base(GUANACO_BASE, merges), adapter, (), merges)

    def _missing_base(self, repository: str, merges: Entries) -> ModelPart:
        """The base, fetched unless a merge of it will do."""
        return ModelPart(repository, None) if merges else self.hub.fetch(repository, WHOLE_BASE.select, self.notify)

    def _merges(self, base: str, adapter: ModelPart | None) -> Entries:
        """Cached merges of a base by this name with this adapter, newest first, by usable format, best first."""
        entries = self.cache.entries("merged")
        found: dict[WeightFormat, tuple[CacheEntry, ...]] = {}
        formats = candidate_formats(self.settings.precision, adapter is not None, self.settings.adapter_mode)
        for weight_format in formats:
            merged = None if weight_format == "nf4+adapter" else adapter
            precision = "nf4" if weight_format == "nf4+adapter" else weight_format
            if usable := tuple(each for each in entries if _is_merge_of(each.record, base, merged, precision)):
                found[weight_format] = usable
        return found

    def _check_worth_fetching(self) -> None:
        """ModelError unless a card has room for the 7B and the Hub responds."""
        needed = FREE_CARD_BYTES_BF16 if self.settings.precision == "bf16" else FREE_CARD_BYTES
        if not any(device.device == "cuda" and device.free >= needed for device in self.devices):
            room = f"{needed // GIB} GiB"
            raise ModelError(f"it is not on this machine, and no graphics card with {room} free was found to fetch it for")
        if not self.hub.responds(GUANACO_BASE):
            reason = "HF_HUB_OFFLINE is set" if self.hub.offline else "the Hub did not answer within 3 s"
            raise ModelError(f"it is not on this machine, and {reason}")


def _is_merge_of(record: Record, base: str, adapter: ModelPart | None, precision: str) -> bool:
    """True for these parts; the adapter by its files, since many a folder is called adapter_model, and is trained again."""
    if (record.get("base"), record.get("precision")) != (base, precision):
        return False
    if adapter is None or record.get("adapter") != adapter.name:
        return adapter is None and record.get("adapter") is None
    merged = record.get("adapter_files")
    recorded = merged if isinstance(merged, dict) else {}
    return all(recorded.get(name) == adapter.fingerprints.get(name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
