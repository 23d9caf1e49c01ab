"""A model as GGUF for llama.cpp and Ollama: merged and measured, or a base with LoRAs, or LoRAs alone.

    names -> checks -> the better merge -> GGUF -> read back and compared with the unmerged adapter

Scope: checks before a weight is read, metadata, and the order of writing. The weights are in weights.py, the file format in
models/gguf, the Modelfile in ollama.py. Knows no engine.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from qlora_chat.chat_templates.known import open_format
from qlora_chat.exporting.ollama import GoTemplate, Modelfile
from qlora_chat.exporting.sources import resolve_in_bf16, source_names, tidy, unmerged_adapters
from qlora_chat.exporting.template import chat_template
from qlora_chat.exporting.weights import file_loss, source_of
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.merge_loss import HeldOut, MergeLoss, builtin_dialogues
from qlora_chat.models.cache import Cache, check_new_folder, new_folder, work_folder, write_record
from qlora_chat.models.chat_format import format_sources
from qlora_chat.models.folders import has_tokenizer
from qlora_chat.models.gguf.describe import architecture_of
from qlora_chat.models.gguf.vocabulary import vocabulary_of
from qlora_chat.models.gguf.write import KINDS, model_bytes, write_lora, write_model
from qlora_chat.models.prepare import ModelText
from qlora_chat.models.resolve import ResolvedModel
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.prompt import ChatFormat
from qlora_chat.settings import ModelSettings, SettingsError, cache_folder, one_of

GgufTarget = Literal["gguf", "ollama"]
GgufLayout = Literal["merged", "adapters", "lora"]
MODELFILE = "Modelfile"


@dataclass(frozen=True)
class GgufOptions:
    """Kind and place of an export. SettingsError for an unknown choice."""

    folder: Path
    target: GgufTarget = "gguf"
    kind: str = "f16"
    layout: GgufLayout = "merged"
    more: Mapping[str, str] | None = None
    """Further LoRAs by name."""
    system: str | None = None
    """System text for the Modelfile."""
    force: bool = False
    """Write a merge that breaks the limits of merge."""

    def __post_init__(self) -> None:
        one_of("type", self.kind, tuple(KINDS))
        one_of("layout", self.layout, ("merged", "adapters", "lora"))
        if self.layout == "merged" and self.more:
            raise SettingsError("a merged model holds one adapter: to export several, use --layout adapters or lora")
        if self.layout == "lora" and self.target == "ollama":
            raise SettingsError("Ollama needs a base for a LoRA: use --layout adapters")


@dataclass(frozen=True)
class ExportedGguf:
    """The written folder."""

    folder: Path
    name: str
    model: str | None
    """File name of the model; None for LoRAs alone."""
    adapters: tuple[str, ...]
    """File names of LoRAs."""
    stop_texts: tuple[str, ...]
    loss: MergeLoss | None
    """Of the file, against the unmerged adapter; None for a LoRA, which llama.cpp applies unmerged."""


def export_gguf(settings: ModelSettings, options: GgufOptions, notify: Notify) -> ExportedGguf:
    """Write the folder, complete or not at all. ModelError with the remedy, before a weight is read where possible."""
    check_new_folder(options.folder)
    cache = Cache(cache_folder(), notify)
    model = resolve_in_bf16("an export", settings, cache)
    if model.base.folder is None or model.cached:
        raise ModelError(f"{model.base.name} is not on this machine, and an export begins with the base itself")
    adapters = {} if options.layout == "merged" else unmerged_adapters(model, options.more or {}, notify)
    export = GgufExport(options, settings.prompt_format, model, adapters, cache)
    export.check()
    with work_folder(options.folder) as work:
        return _run(export, work)


@dataclass(frozen=True)
class GgufExport:
    """Everything that is decided before a weight is read."""

    options: GgufOptions
    named_format: str | None
    model: ResolvedModel
    adapters: Mapping[str, AdapterFolder]
    """LoRAs to write unmerged; none in a merged model."""
    cache: Cache

    @cached_property
    def merged(self) -> AdapterFolder | None:
        """The adapter to merge."""
        return self.model.adapter_folder if self.options.layout == "merged" else None

    @cached_property
    def rows(self) -> int:
        """Embeddings of the written model."""
        return self.merged.vocabulary(self.model.config) if self.merged else self.model.config.shape.vocabulary

    @cached_property
    def text(self) -> ModelText:
        """Tokenizer and ends of answers: the adapter's own, where its folder holds them."""
        model = self.model
        return ModelText.read(model.base.name, model.config, model.adapter_folder, self.cache)

    @cached_property
    def prompt_format(self) -> ChatFormat:
        """The format of the conversation."""
        chosen = format_sources(self.model.base, self.model.config, self.model.adapter).choose(self.named_format)
        self.cache.notify(chosen.line)
        return open_format(chosen, self.text.tokenizer)

    @cached_property
    def vocabulary(self) -> dict[str, Any]:
        """The tokenizer as metadata."""
        return vocabulary_of(self.text.tokenizer.tokenizer_json, self.rows)

    @cached_property
    def ends(self) -> list[int]:
        """Ids that end an answer, the tokenizer's own first."""
        special, tokenizer = self.text.special, self.text.tokenizer
        marked = [tokenizer.token_id(each) for each in self.prompt_format.stop_tokens]
        ends = [special.eos, *marked, *sorted(special.stops)]
        return list(dict.fromkeys(each for each in ends if each is not None and each < self.rows))

    @property
    def name(self) -> str:
        """Name of the model in files and commands."""
        return tidy(self.model.name if self.options.layout == "merged" else self.model.base.name)

    @property
    def model_file(self) -> str | None:
        """File name of the model, None for LoRAs alone."""
        return None if self.options.layout == "lora" else f"{self.name}-{self.options.kind.upper()}.gguf"

    @cached_property
    def measured(self) -> AdapterFolder | None:
        """The adapter that the loss is measured with: the one to merge, or the first that stays unmerged."""
        return self.merged or next(iter(self.adapters.values()), None)

    @cached_property
    def held_out(self) -> HeldOut:
        """The text that losses are measured on."""
        return builtin_dialogues(self.text.tokenizer, self.text.special.bos, self.model.config.shape.window)

    def check(self) -> None:
        """ModelError for what GGUF, llama.cpp or Ollama cannot express, and for too little room on the disk."""
        base = self.model.config
        architecture_of(base)
        if base.is_int8:
            raise ModelError(f"{self.model.base.name} is in 8 bits; give the 16-bit or NF4 base that it was made of")
        for name, adapter in self.adapters.items():
            self._check_adapter(name, adapter)
        if self.model_file:
            self.metadata()  # refuses a tokenizer that llama.cpp would read differently
        if self.options.target == "ollama":
            str(self.modelfile(None))  # refuses a format or a system text that Ollama cannot express
        needed = sum(2 * each.bytes for each in self.adapters.values())
        if self.model_file:
            needed += 2 * model_bytes(base, self.rows, "f16") + model_bytes(base, self.rows, self.options.kind)
        folder = next(each for each in self.options.folder.absolute().parents if each.exists())
        if (free := shutil.disk_usage(folder).free) < needed:
            raise ModelError(
                f"{folder} has {free / 1e9:.1f} GB free, and the export needs {needed / 1e9:.1f} GB while it is made"
            )

    def _check_adapter(self, name: str, adapter: AdapterFolder) -> None:
        base = self.model.config
        adapter.check(base)
        if features := adapter.merge_only_on(base):
            raise ModelError(
                f"a LoRA in GGUF cannot hold {', '.join(features)} of adapter {name}: export it with --layout merged"
            )
        if adapter is not self.model.adapter_folder and has_tokenizer(adapter.folder):
            raise ModelError(
                f"adapter {name} brings its own tokenizer, and a LoRA in GGUF has none: give it as --adapter, alone"
            )

    def metadata(self) -> dict[str, Any]:
        """Metadata of the model's file, besides sizes."""
        special, tokens = self.text.special, self.vocabulary["tokenizer.ggml.tokens"]
        bos = special.bos if special.bos is not None else special.config.get("bos_token_id")
        values: dict[str, Any] = {"general.name": self.name, **self.vocabulary}
        values |= {"tokenizer.ggml.add_bos_token": special.bos is not None, "tokenizer.ggml.add_eos_token": False}
        if isinstance(bos, int) and 0 <= bos < self.rows:
            values["tokenizer.ggml.bos_token_id"] = bos
        for kind, number in zip(("eos", "eot", "eom"), self.ends, strict=False):
            values[f"tokenizer.ggml.{kind}_token_id"] = number
        bos_text = tokens[special.bos] if special.bos is not None else ""
        values["tokenizer.chat_template"] = chat_template(self.prompt_format, bos_text)
        return values

    def modelfile(self, adapter: str | None) -> Modelfile:
        """The Modelfile for the model with this LoRA file."""
        assert self.model_file
        tokens = self.vocabulary["tokenizer.ggml.tokens"]
        stops = (*self.prompt_format.stop_texts, *(tokens[each] for each in self.ends))
        template = GoTemplate.of(self.prompt_format, self.text.tokenizer)
        window = self.model.config.shape.window
        return Modelfile(self.model_file, template, tuple(dict.fromkeys(stops)), window, self.options.system, adapter)


def _run(export: GgufExport, work: Path) -> ExportedGguf:
    """Write everything, in a folder that appears complete."""
    loss, origin = None, None
    with new_folder(export.options.folder) as folder:
        if export.model_file:
            source = source_of(export, work)
            origin, path = source.origin, folder / export.model_file
            tensors = Checkpoint(source.base.folder)
            if wide := write_model(path, source.base, tensors, export.metadata(), export.options.kind):
                why = f"because their rows are not of whole blocks of 32 ({wide[0]})"
                export.cache.notify(f"{len(wide)} matrices stay in F16, {why}")
            loss = file_loss(export, source, path, work)
            export.cache.notify(
                f"{path.name}: {path.stat().st_size / 1e9:.3f} GB, KL {loss.kl}, agreement {loss.top1:.1%} "
                f"at {loss.tokens} tokens, perplexity {loss.perplexity}"
            )
        files = {name: f"{name}.lora.gguf" for name in export.adapters}
        for name, adapter in export.adapters.items():
            write_lora(folder / files[name], export.model.config, adapter, {"general.name": name})
        if export.options.target == "ollama":
            for index, file in enumerate(files.values() or (None,)):
                target = MODELFILE if index == 0 else f"{MODELFILE}.{tuple(files)[index]}"
                (folder / target).write_text(str(export.modelfile(file)), encoding="utf-8")
        write_record(folder, _record(export, origin, loss))
    return ExportedGguf(
        export.options.folder, export.name, export.model_file, tuple(files.values()), export.prompt_format.stop_texts, loss
    )


def _record(export: GgufExport, origin: str | None, loss: MergeLoss | None) -> dict[str, Any]:
    return {
        "exported_for": export.options.target,
        **source_names(export.model, export.adapters),
        "base_weights": origin,
        "type": export.options.kind,
        "prompt_format": export.prompt_format.name,
        "stops": {"texts": list(export.prompt_format.stop_texts), "token_ids": export.ends},
        "loss": asdict(loss) if loss else None,
    }
