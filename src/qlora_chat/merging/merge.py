"""The whole of a measured merge.

    base + adapter -> every merge -> measured against the unmerged adapter -> the best, written with its report

Scope: ties the parts together. Needs room on disk for two merges in 16 bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora_chat.chat_templates.known import open_format
from qlora_chat.evaluation.held_out import HeldOutText, read_text
from qlora_chat.exporting.sources import resolve_in_bf16
from qlora_chat.merging.candidates import FORMS, Candidate, Form, Origin, pick
from qlora_chat.merging.measure import Measure
from qlora_chat.merging.report import Report, write_description
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.merge_loss import HeldOut, builtin_dialogues
from qlora_chat.models.cache import Cache, check_new_folder, new_folder, work_folder
from qlora_chat.models.chat_format import format_sources
from qlora_chat.models.folders import Base
from qlora_chat.models.plan import ResolvedModel
from qlora_chat.models.prepare import ModelText, nf4_base, write_model
from qlora_chat.models.weights.quantize import quantize_int8, quantize_nf4
from qlora_chat.models.weights.shards import NamedTensor, StoredFormat
from qlora_chat.prompt import ChatFormat
from qlora_chat.settings import ModelSettings, SettingsError, cache_folder, one_of

MAX_TOKENS = 2000
"""Counted tokens of the held-out text: a share of 97 % is then known to half a per cent."""


@dataclass(frozen=True)
class MergeOptions:
    """Form and place of a merge. SettingsError for a form that there is not."""

    out: Path
    data: str | None = None
    """Held-out text; None uses the program's own dialogues."""
    form: Form = "auto"
    force: bool = False
    """Write the best merge even if it breaks the limits."""

    def __post_init__(self) -> None:
        one_of("form", self.form, ("auto", *FORMS))


def merge(settings: ModelSettings, options: MergeOptions, notify: Notify) -> Report:
    """Measure every merge and write the best to `options.out`. ModelError if nothing can be written.

    SettingsError for settings that name no base or no adapter.
    """
    if settings.base is None and settings.model == "auto":
        raise SettingsError("a merge needs --base and --adapter, or --model demo, smollm2 or guanaco-7b")
    if settings.base is not None and settings.adapter is None:
        raise SettingsError("a merge needs --adapter, the LoRA to add to --base")
    check_new_folder(options.out)
    text = read_text(options.data, notify) if options.data else None
    cache = Cache(cache_folder(), notify)
    model = resolve_in_bf16("a measured merge", settings, cache)
    adapter = model.adapter_folder
    if model.base.folder is None or adapter is None:
        raise ModelError("a merge needs a base and an adapter on this machine: give --base and --adapter")
    if (training := model.trained_on) and training.form != "nf4" and not model.config.is_nf4:
        known = (
            "the base in 16 bits was trained on" if training.form else "it is not known which form of the base was trained on"
        )
        notify(f"{known} ({training.reason}); every figure compares with the base in NF4, which is right for QLoRA alone")
    chosen = format_sources(model.base, model.config, model.adapter).choose(settings.prompt_format)
    nf4, own = nf4_base(model, cache), ModelText.read(model.base.name, model.config, adapter, cache)
    prompt_format = open_format(chosen, own.tokenizer)
    notify(chosen.line)
    measure = Measure(_in_ids(text, own, model.config.shape.window, prompt_format), model.plan.device, notify)
    with work_folder(options.out) as folder:
        return _Merges(options, model, adapter, nf4, own, measure, folder).run(prompt_format)


def _in_ids(held_out: HeldOutText | None, text: ModelText, window: int, prompt_format: ChatFormat) -> HeldOut:
    if held_out is None:
        return builtin_dialogues(text.tokenizer, text.special.bos, window)
    return held_out.tokenize(text.tokenizer, text.special.eos, window, MAX_TOKENS, prompt_format)


@dataclass(frozen=True)
class _Merges:
    """The candidates of one run, each in a folder of its own while it may still be chosen."""

    options: MergeOptions
    model: ResolvedModel
    adapter: AdapterFolder
    nf4: Base
    """The base in NF4, which may be the model's own."""
    text: ModelText
    measure: Measure
    folder: Path
    """Temporary, on the disk of the result."""

    def run(self, prompt_format: ChatFormat) -> Report:
        logits, reference = self.measure.reference(self.nf4, self.adapter)
        self.measure.notify(f"reference: the adapter on the NF4 base, perplexity {reference.perplexity}")
        origins: tuple[Origin, ...] = ("nf4",) if self.model.config.is_nf4 else ("nf4", "original")
        measured: list[Candidate] = []
        for origin in origins:
            for form in FORMS:
                measured.append(self.measure.candidate(origin, form, self._merged(origin, form), logits))
                self._delete_all_but(pick(measured, self.options.form), needed=(origin, "bf16"))
        chosen = pick(measured, self.options.form)
        text_name = Path(self.options.data).name if self.options.data else "the program's own dialogues"
        report = Report(
            self.model.base, self.model.adapter, text_name, self.measure.device, reference, tuple(measured), chosen,
            self.options.force,
        )  # fmt: skip
        self.measure.notify(report.table())
        if not self.options.force:
            instead = "choose another --form, serve the adapter unmerged (serve --base --adapter)"
            chosen.loss.check(f"the best merge ({chosen.name})", instead)
        with new_folder(self.options.out) as folder:
            for path in self._merged(chosen.origin, chosen.form).iterdir():
                path.rename(folder / path.name)
            write_description(folder, report, prompt_format, self.text)
        return report

    def _merged(self, origin: Origin, form: StoredFormat) -> Path:
        """Folder of one merge, written if it is not there."""
        folder = self.folder / f"{origin}-{form}"
        if folder.is_dir():
            return folder
        folder.mkdir()
        base = self.nf4 if origin == "nf4" else self.model.config
        write_model(folder, self._tensors(origin, form, base), base, self.text, form)
        return folder

    def _tensors(self, origin: Origin, form: StoredFormat, base: Base) -> Iterator[NamedTensor]:
        if form == "bf16":
            from qlora_chat.models.adapter.merge import merge_bf16

            return merge_bf16(base, self.adapter, self.measure.device)
        merged = Base.read(self._merged(origin, "bf16"))
        return quantize_int8(merged) if form == "int8" else quantize_nf4(merged, self.measure.device)

    def _delete_all_but(self, best: Candidate, needed: tuple[Origin, StoredFormat]) -> None:
        """Delete merges that will hardly be chosen; a 7B's take 48 GB together. If one is after all, it is merged again."""
        needed_names = {f"{best.origin}-{best.form}", "-".join(needed)}
        for folder in self.folder.iterdir():
            if folder.name not in needed_names:
                shutil.rmtree(folder)
