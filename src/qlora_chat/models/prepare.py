"""A plan -> tensors that are ready to be read: from the cache, from the source itself, or made now and kept.

Scope: which of the three it is, and what is recorded beside what was made. The work itself is in merge.py and
quantise.py. Knows nothing of names on the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.merge_loss import Loss, compare, own_dialogues
from qlora_chat.models.cache import Cache, CacheUnusable, Record, fingerprints, key_of, sha256
from qlora_chat.models.folders import Base, adapter_bytes, check_adapter
from qlora_chat.models.locate import Part, Source, check_source, kept_entries
from qlora_chat.models.placement import DeviceMemory, Held, Plan, choose_plan, explain_cpu_fallback, weight_bytes
from qlora_chat.models.tokenizer.folder import tokenizer_folder
from qlora_chat.models.tokenizer.special_tokens import SpecialIds, special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import Adapter
from qlora_chat.models.weights.shards import Named, write_shards, write_small_files
from qlora_chat.settings import KVCacheDtype


@dataclass(frozen=True)
class PreparedModel:
    """What a model is read from."""

    plan: Plan
    base: Base
    """Whose config holds; its folder is the source's or the cached one."""
    tensors: Mapping[str, Tensor]
    tokenizer: ModelTokenizer
    special: SpecialIds
    adapter: Adapter | None = None
    """Beside the base, unmerged."""
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What was merged or quantised: a one-way stream of tensors, or all of them."""

    tensors: Iterable[Named]
    loss: Loss | None = None


def prepare(
    source: Source, ways: Sequence[Held], places: Sequence[DeviceMemory], cache: Cache, notify: Notify,
    kv_cache_dtype: KVCacheDtype = "auto",
) -> PreparedModel:  # fmt: skip
    """Choose a plan that fits, of the ways to hold the weights (best first), and make it ready. ModelError says what is in the
    way."""
    base = check_source(source)
    if base is None:
        return _from_kept(source, ways, places, cache, notify, kv_cache_dtype)
    plan = _planned(base, ways, source, places, notify, kv_cache_dtype)
    work = _Work(source, base, plan, cache, notify)
    return work.ready()


@dataclass(frozen=True)
class Parts:
    """What a measured merge starts from."""

    original: Base
    nf4: Base
    """The same folder where the original is in NF4 already."""
    tokenizer: ModelTokenizer
    tokenizer_folder: Path
    special: SpecialIds


def parts_of(source: Source, place: DeviceMemory, cache: Cache, notify: Notify) -> Parts:
    """Base as it is and in NF4, quantised once and kept, with its tokenizer. ModelError says what is in the way."""
    base = check_source(source)
    if base is None:
        raise ModelError(f"{source.base.name} is not on this machine, and a merge is measured from the base itself")
    alone = _Work(Source(source.name, source.base), base, Plan(place, "nf4"), cache, notify)
    tokenizer, special = alone._tokenizer()
    tokenizer.bos_id = special.bos
    return Parts(base, alone._quantised_base()[0], tokenizer, alone._tokenizer_folder(), special)


def _adapter_bytes(source: Source) -> int:
    return adapter_bytes(source.adapter.folder) if source.adapter and source.adapter.folder else 0


def _planned(
    base: Base,
    ways: Sequence[Held],
    source: Source,
    places: Sequence[DeviceMemory],
    notify: Notify,
    kv_cache_dtype: KVCacheDtype,
) -> Plan:
    beside = _adapter_bytes(source)
    plan = choose_plan(base, ways, beside, places, kv_cache_dtype)
    if said := explain_cpu_fallback(plan, base, ways, beside, places, kv_cache_dtype):
        notify(said)
    return plan


def _from_kept(
    source: Source,
    ways: Sequence[Held],
    places: Sequence[DeviceMemory],
    cache: Cache,
    notify: Notify,
    kv_cache_dtype: KVCacheDtype,
) -> PreparedModel:
    """The base is gone from this machine, but what was made of it is not."""
    kept = kept_entries(cache, source, ways)
    if not kept:
        raise ModelError(f"{source.base.name} is not on this machine, nor is anything that was made of it")
    first = Base.read(next(iter(kept.values())).folder)
    plan = _planned(first, tuple(kept), source, places, notify, kv_cache_dtype)
    if plan.held == "nf4+adapter" and source.adapter and source.adapter.folder:
        check_adapter(source.adapter.folder, first)
    entry = kept[plan.held]
    notify(f"{source.base.name} is no longer on this machine; what was made of it on {entry.record.get('made')} is used")
    return _read_entry(plan, entry.folder, entry.record, source)


def _read_entry(plan: Plan, folder: Path, record: Record, source: Source) -> PreparedModel:
    base = Base.read(folder)
    tokenizer = ModelTokenizer.read(folder, None)
    special = special_ids(source.base.name, folder, base.config, tokenizer, folder)
    notices = tuple(str(line) for line in record.get("notices", ()))
    return PreparedModel(plan, base, Checkpoint(folder), tokenizer, special, _beside(plan, source), notices)


def _beside(plan: Plan, source: Source) -> Adapter | None:
    if plan.held != "nf4+adapter" or source.adapter is None or source.adapter.folder is None:
        return None
    return Adapter.read(source.adapter.folder)


@dataclass(frozen=True)
class _Work:
    source: Source
    base: Base
    plan: Plan
    cache: Cache
    notify: Notify
    earlier: tuple[str, ...] = ()
    """What was said of the base when it was quantised, and holds for what is made of that."""

    def ready(self) -> PreparedModel:
        beside = _beside(self.plan, self.source)  # refused here, before minutes of work, if it cannot stay unmerged
        merged = None if beside else self.source.adapter
        held = "bf16" if self.plan.held == "bf16" else "nf4"
        if merged is None and self.base.quantised == (held == "nf4"):
            return self._as_it_is(beside)
        if merged is None or held == "bf16":
            return self._kept_or_made(held, merged)
        return self._requantised(merged)

    def _as_it_is(self, adapter: Adapter | None) -> PreparedModel:
        """The source's own weights will do."""
        tokenizer, special = self._tokenizer()
        return PreparedModel(self.plan, self.base, Checkpoint(self.base.folder), tokenizer, special, adapter, special.notices)

    def _requantised(self, merged: Part) -> PreparedModel:
        """Merged into NF4, for which the base must be in NF4 on disk first."""
        key = self._key("nf4", merged)
        if not self.base.quantised and self.cache.find("merged", key) is None:
            base, notices = self._quantised_base()
            work = _Work(self.source, base, self.plan, self.cache, self.notify, notices)
            return work._kept_or_made("nf4", merged, key)
        return self._kept_or_made("nf4", merged, key)

    def _quantised_base(self) -> tuple[Base, tuple[str, ...]]:
        """The base in NF4 on disk, and what was said when it was quantised."""
        if self.base.quantised:
            return self.base, ()
        alone = _Work(Source(self.source.name, self.source.base), self.base, self.plan, self.cache, self.notify)
        ready = alone._kept_or_made("nf4", None)
        if not isinstance(ready.tensors, Checkpoint):
            raise ModelError(f"{self.cache.root} needs room for the base in NF4; set QLORA_CHAT_CACHE to another folder")
        return ready.base, ready.notices

    def _kept_or_made(self, held: Held, merged: Part | None, key: str | None = None) -> PreparedModel:
        key = key or self._key(held, merged)
        if (entry := self.cache.find("merged", key)) is not None:
            return _read_entry(self.plan, entry.folder, entry.record, self.source)
        tokenizer, special = self._tokenizer()
        self.notify(self._doing(held, merged))
        make = partial(self._make, held, merged, tokenizer, special)
        try:
            self.cache.check_room("merged", weight_bytes(self.base, held))
            entry = self.cache.write("merged", key, lambda folder: self._fill(folder, held, merged, make, special))
        except CacheUnusable as problem:
            self.notify(f"nothing is kept for the next start: {problem}; QLORA_CHAT_CACHE names another folder")
            made = make()
            notices = self._lines(special, made.loss)
            return PreparedModel(
                self.plan, self.base, dict(made.tensors), tokenizer, special, _beside(self.plan, self.source), notices
            )
        return _read_entry(self.plan, entry.folder, entry.record, self.source)

    def _make(self, held: Held, merged: Part | None, tokenizer: ModelTokenizer, special: SpecialIds) -> Made:
        device = self.plan.place.device
        adapter = merged.folder if merged else None
        if held == "bf16":
            from qlora_chat.models.adapter.merge import merged_bf16

            return Made(merged_bf16(self.base, adapter, device))
        if adapter is None:
            from qlora_chat.models.weights.quantize import quantised

            return Made(quantised(self.base, device))
        from qlora_chat.models.adapter.merge import merged_nf4, unmerged_logits

        text = own_dialogues(tokenizer, special.bos, self.base.shape.window)
        reference = unmerged_logits(self.base, adapter, device, text)
        tensors, logits = merged_nf4(self.base, adapter, device, text)
        return Made(tensors.items(), compare(reference, logits, text.targets))

    def _fill(self, folder: Path, held: Held, merged: Part | None, make: Callable[[], Made], special: SpecialIds) -> Record:
        made = make()
        write_shards(made.tensors, folder)
        config = {**self.base.config, **special.config}
        tokenizer = self._tokenizer_folder()
        stored = "nf4" if held == "nf4" else "bf16"
        write_small_files(folder, config, special.generation, tokenizer, self.base.folder, stored=stored)
        return {
            **origin("base", self.source.base),
            **(origin("adapter", merged) if merged else {"adapter": None}),
            "precision": held,
            "loss": asdict(made.loss) if made.loss else None,
            "notices": self._lines(special, made.loss),
        }

    def _key(self, held: Held, merged: Part | None) -> str:
        parts = {"base": fingerprints(self.base.folder), "held": held, "adapter": _prints(merged)}
        return key_of(f"{merged.name if merged else self.source.base.name}-{held}", parts)

    def _doing(self, held: Held, merged: Part | None) -> str:
        what = f"merging {merged.name} into {self.source.base.name}" if merged else f"converting {self.source.base.name}"
        return f"{what} ({held}) on the {self.plan.place.device}, once; later starts read the result from {self.cache.root}"

    def _tokenizer(self) -> tuple[ModelTokenizer, SpecialIds]:
        folder = self._tokenizer_folder()
        tokenizer = ModelTokenizer.read(folder, None)
        return tokenizer, special_ids(self.source.base.name, self.base.folder, self.base.config, tokenizer, folder)

    def _tokenizer_folder(self) -> Path:
        return tokenizer_folder(self.source.base.name, self.base.folder, self.cache, self.notify)

    def _lines(self, special: SpecialIds, loss: Loss | None) -> tuple[str, ...]:
        return (*self.earlier, *special.notices, *([str(loss)] if loss else []))


def _prints(part: Part | None) -> Any:
    return fingerprints(part.folder) if part and part.folder else None


def origin(role: str, part: Part) -> Record:
    """Name, revision and contents of what went in; an adapter's weights always with their sha256."""
    files = fingerprints(part.folder) if part.folder else {}
    if role == "adapter" and part.folder:
        files["adapter_model.safetensors"] = f"sha256:{sha256(part.folder / 'adapter_model.safetensors')}"
    return {role: part.name, f"{role}_revision": part.revision, f"{role}_files": files}
