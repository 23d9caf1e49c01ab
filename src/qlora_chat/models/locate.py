"""Names -> folders: which base and adapter the settings mean, and where they are on this machine.

Scope: names, aliases, the bundled demo, what `auto` prefers, fetching what is missing. Knows nothing of merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.convert import convert_into
from qlora_chat.models.cache import Cache, CacheUnusable, Entry, Record, fingerprints, key_of
from qlora_chat.models.folders import Base, adapter_bytes, check_adapter, is_complete_base
from qlora_chat.models.hub import (
    ADAPTER_PICKLE,
    Hub,
    Snapshot,
    adapter_files,
    adapter_files_or_pickle,
    base_files,
    is_hub_id,
)
from qlora_chat.models.placement import GIB, DeviceMemory, Held, candidate_formats, choose_plan
from qlora_chat.settings import ModelSettings

GUANACO = "guanaco-7b"
GUANACO_BASE = "huggyllama/llama-7b"
GUANACO_ADAPTER = "timdettmers/guanaco-7b"
ALIASES = {"decapoda-research/llama-7b-hf": GUANACO_BASE}
"""Repositories that are gone, and the one that holds the same weights."""
FREE_CARD_BYTES = 6 * GIB
FREE_CARD_BYTES_BF16 = 16 * GIB
"""What `auto` wants free on a card before it fetches the 7B."""

DEMO = "Llama-Lumi-45M"
BUNDLED = Path(__file__).parent.parent / "bundled"
TOY = (
    f"{DEMO} is a 45 M-parameter toy that comes with the program to show how everything works: fluent, and often wrong. "
    "Built with Llama."
)


@dataclass(frozen=True)
class Part:
    """A base or an adapter."""

    name: str
    """Hub id, or the folder's own name."""
    folder: Path | None
    """None where it is no longer on this machine and what was made of it is in the cache."""
    revision: str | None = None
    """Commit of a Hub repository."""


@dataclass(frozen=True)
class Source:
    """What a model is made of."""

    name: str
    base: Part
    adapter: Part | None = None
    notices: tuple[str, ...] = ()


def resolve(settings: ModelSettings, hub: Hub, cache: Cache, places: Sequence[DeviceMemory], notify: Notify) -> Source:
    """The parts that the settings name, fetched where they are not here. ModelError says what is in the way."""
    finder = _Finder(settings, hub, cache, notify)
    if settings.base:
        return finder.named(settings.base, settings.adapter)
    if settings.model == GUANACO:
        return finder.guanaco()
    if settings.model == "demo":
        return demo()
    return _auto(finder, places)


def resolve_adapter(text: str, hub: Hub, cache: Cache, notify: Notify) -> Part:
    """One adapter by Hub id or folder. ModelError says what is in the way."""
    return _Finder(ModelSettings(), hub, cache, notify)._adapter(text)


def demo(why: str | None = None) -> Source:
    """The bundled model; `why` says why it and not another."""
    notices = (TOY,) if why is None else (TOY, why)
    base, adapter = Part(DEMO, BUNDLED / "base"), Part(f"{DEMO} chat adapter", BUNDLED / "adapter")
    return Source(f"{DEMO} (demo)", base, adapter, notices)


def _auto(finder: _Finder, places: Sequence[DeviceMemory]) -> Source:
    """guanaco-7b where it is here and fits, or can be fetched for a card; else the demo, with the reason."""
    try:
        source = finder.guanaco_here()
        if source is None:
            finder.check_worth_fetching(places)
            source = finder.guanaco()
        finder.check_fits(source, places)
    except ModelError as problem:
        how = f"to get the 7B: qlora-chat serve --model {GUANACO}"
        return demo(f"The bundled demo answers, because {GUANACO} was left out: {problem} ({how})")
    return source


@dataclass(frozen=True)
class _Finder:
    settings: ModelSettings
    hub: Hub
    cache: Cache
    notify: Notify

    def named(self, base: str, adapter: str | None) -> Source:
        found = self._adapter(adapter) if adapter else None
        return self._with_base(base, found)

    def guanaco(self) -> Source:
        return replace(self._with_base(GUANACO_BASE, self._guanaco_adapter()), name=GUANACO)

    def guanaco_here(self) -> Source | None:
        """guanaco-7b if nothing has to be fetched for it."""
        adapter_here = self._converted() or self._whole_adapter(GUANACO_ADAPTER)
        base_here = self._whole_base(GUANACO_BASE) or self._kept(GUANACO_BASE, GUANACO_ADAPTER)
        return self.guanaco() if adapter_here and base_here else None

    def check_worth_fetching(self, places: Sequence[DeviceMemory]) -> None:
        """ModelError unless a card has room and the Hub answers."""
        if not any(place.device == "cuda" and place.free >= self._worth_bytes() for place in places):
            room = f"{self._worth_bytes() // GIB} GiB"
            raise ModelError(f"it is not on this machine, and no graphics card with {room} free was found to fetch it for")
        if not self.hub.answers(GUANACO_BASE):
            reason = "HF_HUB_OFFLINE is set" if self.hub.offline else "the Hub did not answer within 3 s"
            raise ModelError(f"it is not on this machine, and {reason}")

    def _worth_bytes(self) -> int:
        return FREE_CARD_BYTES_BF16 if self.settings.precision == "bf16" else FREE_CARD_BYTES

    def check_fits(self, source: Source, places: Sequence[DeviceMemory]) -> None:
        ways = self._ways(source.adapter is not None)
        folder = source.base.folder
        if folder is None:
            kept = kept_entries(self.cache, source, ways)
            ways, folder = tuple(kept), next(iter(kept.values())).folder
        adapter = source.adapter.folder if source.adapter else None
        size = adapter_bytes(adapter) if adapter else 0
        choose_plan(Base.read(folder), ways, size, places, self.settings.kv_cache_dtype)

    def _with_base(self, text: str, adapter: Part | None) -> Source:
        text = self._unaliased(text)
        if text == "demo" and not Path(text, "config.json").is_file():  # a folder of that name is meant only if it is a model
            return Source(adapter.name if adapter else DEMO, Part(DEMO, BUNDLED / "base"), adapter, (TOY,))
        if (folder := _folder(text)) is not None:
            return Source(adapter.name if adapter else folder.name, Part(folder.name, folder), adapter)
        _require_hub_id("--base", text)
        name = adapter.name if adapter else text
        if (here := self._whole_base(text)) is not None:
            return Source(name, Part(text, here.folder, here.revision), adapter)
        kept = Source(name, Part(text, None), adapter)
        if kept_entries(self.cache, kept, self._ways(adapter is not None)):
            return kept
        fetched = self.hub.fetch(text, base_files, self.notify)
        return Source(name, Part(text, fetched.folder, fetched.revision), adapter)

    def _adapter(self, text: str) -> Part:
        if (folder := _folder(text)) is not None:
            return Part(folder.name, folder)
        _require_hub_id("--adapter", text)
        if text == GUANACO_ADAPTER:
            return self._guanaco_adapter()
        here = self._whole_adapter(text) or self.hub.fetch(text, adapter_files, self.notify)
        return Part(text, here.folder, here.revision)

    def _guanaco_adapter(self) -> Part:
        """Guanaco's published adapter is a pickle: converted once, unasked, with a notice."""
        if (converted := self._converted()) is not None:
            return Part(GUANACO_ADAPTER, converted.folder, converted.record.get("revision"))
        here = self._whole_adapter(GUANACO_ADAPTER) or self.hub.fetch(GUANACO_ADAPTER, adapter_files_or_pickle, self.notify)
        if (here.folder / "adapter_model.safetensors").is_file():
            return Part(GUANACO_ADAPTER, here.folder, here.revision)
        return self._convert(here)

    def _convert(self, pickled: Snapshot) -> Part:
        self.notify(f"{GUANACO_ADAPTER} was published as a pickle: converting it to safetensors once, in a process of its own")
        key = key_of(GUANACO_ADAPTER, fingerprints(pickled.folder))
        made = {"name": GUANACO_ADAPTER, "revision": pickled.revision}
        try:
            entry = self.cache.write("adapters", key, lambda folder: {**made, **convert_into(pickled.folder, folder)})
        except CacheUnusable as problem:
            raise ModelError(
                f"the converted adapter could not be kept: {problem}; set QLORA_CHAT_CACHE to another folder"
            ) from problem
        return Part(GUANACO_ADAPTER, entry.folder, pickled.revision)

    def _converted(self) -> Entry | None:
        return next((entry for entry in self.cache.entries("adapters") if entry.record.get("name") == GUANACO_ADAPTER), None)

    def _whole_base(self, repository: str) -> Snapshot | None:
        here = self.hub.cached(repository)
        return here if here and is_complete_base(here.folder) else None

    def _whole_adapter(self, repository: str) -> Snapshot | None:
        here = self.hub.cached(repository)
        return here if here and _holds_adapter(here.folder) else None

    def _kept(self, base: str, adapter: str) -> bool:
        source = Source(base, Part(base, None), Part(adapter, None))
        return bool(kept_entries(self.cache, source, self._ways(has_adapter=True)))

    def _ways(self, has_adapter: bool) -> tuple[Held, ...]:
        return candidate_formats(self.settings.precision, has_adapter, self.settings.adapter_mode)

    def _unaliased(self, text: str) -> str:
        if text not in ALIASES:
            return text
        self.notify(f"{text} is gone from the Hub; {ALIASES[text]} holds the same weights and is used instead")
        return ALIASES[text]


def kept_entries(cache: Cache, source: Source, ways: Sequence[Held]) -> dict[Held, Entry]:
    """What was made earlier of a source by these names, by the way it holds the model, newest each; for a base that is gone."""
    entries = cache.entries("merged")
    found: dict[Held, Entry] = {}
    for held in ways:
        adapter, precision = (None, "nf4") if held == "nf4+adapter" else (source.adapter and source.adapter.name, held)
        for entry in entries:
            made = entry.record
            same_names = (made.get("base"), made.get("adapter"), made.get("precision")) == (
                source.base.name,
                adapter,
                precision,
            )
            if same_names and (adapter is None or _made_of(made, source.adapter)):
                found.setdefault(held, entry)
    return found


def _made_of(record: Record, adapter: Part | None) -> bool:
    """Whether it is this very adapter that was merged: many a folder is called adapter_model, and is trained again."""
    if adapter is None or adapter.folder is None:
        return True
    merged, here = record.get("adapter_files"), fingerprints(adapter.folder)
    recorded = merged if isinstance(merged, dict) else {}
    return all(recorded.get(name) == here.get(name) for name in ("adapter_config.json", "adapter_model.safetensors"))


def check_source(source: Source) -> Base | None:
    """Check base and adapter from their headers, before any weight is read; None where the base is no longer here."""
    if source.base.folder is None:
        return None
    base = Base.read(source.base.folder)
    base.check_weights()
    if source.adapter and source.adapter.folder:
        check_adapter(source.adapter.folder, base)
    return base


def _folder(text: str) -> Path | None:
    path = Path(text).expanduser()
    return path.resolve() if path.is_dir() else None


def _require_hub_id(option: str, text: str) -> None:
    if not is_hub_id(text):
        raise ModelError(f"{option} is {text!r}, but there is no such folder, and a Hub id looks like owner/name")


def _holds_adapter(folder: Path) -> bool:
    weights = (folder / "adapter_model.safetensors", folder / ADAPTER_PICKLE)
    return (folder / "adapter_config.json").is_file() and any(path.is_file() for path in weights)
