"""A resolved model -> tensors that can be read: from the cache, from the base itself, or converted now and cached.

Scope: which of the three, and the record of what was converted. The work itself is in adapter/merge.py and
weights/quantize.py. Knows nothing of names on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import ADAPTER_WEIGHTS, AdapterFolder
from qlora_chat.models.adapter.merge_loss import MergeLoss, builtin_dialogues, compare
from qlora_chat.models.cache import Cache, CacheEntry, CacheUnusable, Record, key_of
from qlora_chat.models.folders import Base, has_tokenizer
from qlora_chat.models.merge_record import MergeRecord, merge_of_entry, merge_of_folder
from qlora_chat.models.part import ModelPart
from qlora_chat.models.placement import DeviceType, weight_bytes
from qlora_chat.models.plan import ResolvedModel
from qlora_chat.models.tokenizer.sentencepiece import tokenizer_folder
from qlora_chat.models.tokenizer.special_tokens import SpecialIds, check_ids, special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.llama import Adapter
from qlora_chat.models.weights.shards import NamedTensor, StoredFormat, write_shards, write_small_files
from qlora_chat.settings import BaseForm

_FORMS: Mapping[BaseForm, str] = {"nf4": "in NF4", "16-bit": "in its original 16 bits"}


@dataclass(frozen=True)
class ModelText:
    """Tokenizer of a base, and the ids that begin and end a text."""

    folder: Path
    """Holds tokenizer.json."""
    tokenizer: ModelTokenizer
    special: SpecialIds

    @staticmethod
    def read(name: str, base: Base, adapter: AdapterFolder | None, cache: Cache) -> ModelText:
        """Read tokenizer and ends of answers: the adapter's own where its folder holds them, else the base's.

        `name` is for notices. ModelError if the tokenizer has ids beyond the embeddings.
        """
        own = adapter.folder if adapter and has_tokenizer(adapter.folder) else base.folder
        folder = tokenizer_folder(name, own, cache)
        vocabulary = adapter.vocabulary(base) if adapter else base.shape.vocabulary
        tokenizer = ModelTokenizer.read(folder, None)
        check_ids(tokenizer, vocabulary)
        configs = base.configs.with_adapter(adapter.folder) if adapter else base.configs
        special = special_ids(name, configs, tokenizer, vocabulary)
        tokenizer.bos_id = special.bos
        return ModelText(folder, tokenizer, special)


@dataclass(frozen=True)
class PreparedModel:
    """Everything a model is loaded from."""

    base: Base
    """Config of the tensors; its folder is the base's or the cached entry's."""
    tensors: Mapping[str, Tensor]
    text: ModelText
    adapter: Adapter | None = None
    """Adapter to apply unmerged."""
    notices: tuple[str, ...] = ()
    merge: MergeRecord | None = None


def prepare(model: ResolvedModel, cache: Cache) -> PreparedModel:
    """Tensors in the plan's weight format. ModelError with the remedy if base or adapter cannot be used."""
    adapter, stored = model.adapter_folder, "bf16" if model.plan.weight_format == "bf16" else "nf4"
    unmerged = None
    if model.plan.weight_format == "nf4+adapter" and adapter:
        unmerged = Adapter.read(adapter)  # refused here, before minutes of work, if it needs a merge
    if model.cached:
        made = model.cached.record.get("made")
        cache.notify(f"{model.base.name} is no longer on this machine; what was made of it on {made} is used")
        return _from_entry(model, model.config, model.cached, unmerged, cache)
    if line := _adapter_line(model):
        cache.notify(line)
    merged = None if unmerged else adapter
    if merged is None and not model.through_nf4 and model.config.is_nf4 == (stored == "nf4"):
        text = ModelText.read(model.base.name, model.config, adapter, cache)
        merge = merge_of_folder(model.base.folder)
        return PreparedModel(model.config, model.config.checkpoint(), text, unmerged, text.special.notices, merge)
    conversion = _Conversion(model, stored, merged, cache)
    try:
        entry = conversion.entry()
    except CacheUnusable as problem:
        cache.notify(f"nothing is cached for the next start: {problem}")
        return conversion.in_memory(unmerged)
    return _from_entry(model, Base.read(entry.folder, entry.weights), entry, unmerged, cache)


def _adapter_line(model: ResolvedModel) -> str | None:
    """Line for the user: on which form of the base the adapter is used, and how that form is known."""
    training, form = model.trained_on, model.base_form
    if training is None or form is None or (training.form is None and form == "nf4"):
        return None  # settings, memory or the base's own files leave NF4 alone
    name = model.adapter.name if model.adapter else ", ".join(name for name, _, _ in model.named_adapters)
    is_merged = model.adapter is not None and model.plan.weight_format != "nf4+adapter"
    used = f"{name}: {'merged into' if is_merged else 'unmerged on'} the base {_FORMS[form]}"
    if training.form == form:
        return f"{used}, as {'--base-form says' if training.is_setting else f'it was trained ({training.reason})'}"
    if training.is_setting:
        return f"{used}, which --base-form cannot change"
    if training.form:
        return f"{used}, though it was trained on the base {_FORMS[training.form]} ({training.reason})"
    return (
        f"{used}; on which form it was trained is not known ({training.reason}): if it was QLoRA, add --base-form nf4; "
        "qlora-chat merge measures the difference"
    )


def write_model(folder: Path, tensors: Iterable[NamedTensor], base: Base, text: ModelText, stored: StoredFormat) -> None:
    """Write tensors, the base's config with the ids of its text, and the tokenizer as a Hugging Face folder."""
    write_shards(tensors, folder)
    config = {**base.config, **text.special.config}
    write_small_files(folder, config, text.special.generation, text.folder, base.folder, stored=stored)


def nf4_base(model: ResolvedModel, cache: Cache) -> Base:
    """The model's base in NF4, quantized once and cached. ModelError if the base is not here or the disk is full."""
    if model.base.folder is None:
        raise ModelError(f"{model.base.name} is not on this machine, and a merge is measured from the base itself")
    return model.config if model.config.is_nf4 else _quantized(model, cache)[0]


def source_record(role: str, part: ModelPart) -> Record:
    """Name, revision and contents of a source, for the record; an adapter's weights always with their sha256."""
    files = dict(part.fingerprints)
    if role == "adapter":
        files[ADAPTER_WEIGHTS] = f"sha256:{part.sha256(ADAPTER_WEIGHTS)}"
    return {role: part.name, f"{role}_revision": part.revision, f"{role}_files": files}


def _quantized(model: ResolvedModel, cache: Cache) -> tuple[Base, tuple[str, ...]]:
    """The model's 16-bit base in NF4 on disk, and the notices of its conversion. ModelError if it cannot be stored."""
    try:
        entry = _Conversion(model, "nf4", None, cache).entry()
    except CacheUnusable as problem:  # no merge without it, so that a second try in memory would fail alike, after minutes
        raise ModelError(str(problem)) from problem
    return Base.read(entry.folder, entry.weights), _notices_of(entry)


def _from_entry(model: ResolvedModel, base: Base, entry: CacheEntry, unmerged: Adapter | None, cache: Cache) -> PreparedModel:
    """Contents of an entry, with the tokenizer and ends of an adapter that stays unmerged."""
    text = ModelText.read(model.base.name, base, model.adapter_folder if unmerged else None, cache)
    merge = merge_of_entry(entry.record) or merge_of_folder(model.base.folder)
    return PreparedModel(base, base.checkpoint(), text, unmerged, _notices_of(entry), merge)


def _notices_of(entry: CacheEntry) -> tuple[str, ...]:
    return tuple(str(line) for line in entry.record.get("notices", ()))


@dataclass(frozen=True)
class _Conversion:
    """A base in another format, with or without the adapter merged into it: one folder of the cache."""

    model: ResolvedModel
    stored: Literal["bf16", "nf4"]
    merged: AdapterFolder | None
    cache: Cache

    @cached_property
    def _origin(self) -> tuple[Base, tuple[str, ...]]:
        """The base to convert, and notices of its own conversion: requantizing a merge starts from NF4 on disk."""
        if self.merged and self.stored == "nf4" and not self.model.config.is_nf4:
            return _quantized(self.model, self.cache)
        return self.model.config, ()

    @property
    def source(self) -> Base:
        """The base to convert: the model's own, or its NF4 form."""
        return self._origin[0]

    @cached_property
    def text(self) -> ModelText:
        """Tokenizer and special ids of the source, and of the adapter that is merged into it."""
        return ModelText.read(self.model.base.name, self.source, self.merged, self.cache)

    @property
    def adapter(self) -> ModelPart | None:
        """The adapter to merge, for names and hashes."""
        return self.model.adapter if self.merged else None

    @cached_property
    def key(self) -> str:
        """Key of the cache entry."""
        base, adapter = self.model.base, self.adapter
        parts = {"base": base.fingerprints, "held": self.stored, "adapter": adapter.fingerprints if adapter else None}
        parts |= self._form
        return key_of(f"{(adapter or base).name}-{self.stored}", parts)

    @property
    def _form(self) -> Record:
        """The form of the base, where it is not the stored one: entries of earlier versions were made of that."""
        return {"base_form": "nf4"} if self.through_nf4 else {}

    @property
    def through_nf4(self) -> bool:
        """True if the source's weights are rounded to NF4's values first."""
        return self.model.through_nf4 and self.stored == "bf16"

    def entry(self) -> CacheEntry:
        """The result of an earlier run, or of a conversion now. CacheUnusable if that cannot be stored."""
        if entry := self.cache.find("merged", self.key):
            return entry
        size = weight_bytes(self.source, self.stored)
        self._announce()
        return self.cache.write("merged", self.key, self._write, size)

    def in_memory(self, unmerged: Adapter | None) -> PreparedModel:
        """The result without the cache, with an adapter to apply to it."""
        tensors, loss = self._convert()
        name, adapter = self.model.base.name, self.adapter
        text = ModelText.read(name, self.source, self.model.adapter_folder, self.cache) if unmerged else self.text
        merge = MergeRecord(adapter.name, None, loss) if adapter else None
        return PreparedModel(self.source, dict(tensors), text, unmerged, self._notices(loss), merge)

    def _announce(self) -> None:
        base, adapter = self.model.base.name, self.adapter
        work = f"merging {adapter.name} into {base}" if adapter else f"converting {base}"
        where = f"on the {self.model.plan.device}, once; later starts read the result from {self.cache.root}"
        self.cache.notify(f"{work} ({self.stored}) {where}")

    def _convert(self) -> tuple[Iterable[NamedTensor], MergeLoss | None]:
        """Tensors, maybe as a one-way stream, and the loss of a requantized merge."""
        device = self.model.plan.device
        if self.stored == "bf16":
            from qlora_chat.models.adapter.merge import merge_bf16

            return merge_bf16(self.source, self.merged, device, through_nf4=self.through_nf4), None
        if self.merged is None:
            from qlora_chat.models.weights.quantize import quantize_nf4

            return quantize_nf4(self.source, device), None
        return _merge_and_measure(self.source, self.merged, device, self.text)

    def _write(self, folder: Path) -> Record:
        tensors, loss = self._convert()
        write_model(folder, tensors, self.source, self.text, self.stored)
        return {
            **source_record("base", self.model.base),
            **(source_record("adapter", self.adapter) if self.adapter else {"adapter": None}),
            "precision": self.stored,
            **self._form,
            "loss": asdict(loss) if loss else None,
            "notices": self._notices(loss),
        }

    def _notices(self, loss: MergeLoss | None) -> tuple[str, ...]:
        return (*self._origin[1], *self.text.special.notices, *([str(loss)] if loss else []))


def _merge_and_measure(
    base: Base, adapter: AdapterFolder, device: DeviceType, text: ModelText
) -> tuple[Iterable[NamedTensor], MergeLoss]:
    """A merge requantized to NF4, compared with the unmerged adapter on the program's own dialogues."""
    from qlora_chat.models.adapter.merge import merge_nf4, unmerged_logits

    dialogues = builtin_dialogues(text.tokenizer, text.special.bos, base.shape.window)
    reference = unmerged_logits(base, adapter, device, dialogues)
    tensors, logits = merge_nf4(base, adapter, device, dialogues)
    return tensors.items(), compare(reference, logits, dialogues.targets)
