"""The whole of a measured merge, on one screen.

    base + adapter -> every merge -> measured against what training saw -> the best, written with its report

Scope: ties the parts together. Needs room on disk for two merges in 16 bits.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from qlora_chat.evaluation.held_out import HeldOutText, read_text
from qlora_chat.merging.candidates import FORMS, Candidate, Form, Origin, Reference, check, pick
from qlora_chat.merging.output import finish
from qlora_chat.merging.report import Report
from qlora_chat.merging.speed import tokens_per_second
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.merge_loss import HeldOut, compare, own_dialogues, perplexity
from qlora_chat.models.cache import Cache, new_folder
from qlora_chat.models.folders import Base
from qlora_chat.models.locate import Source
from qlora_chat.models.placement import GIB, DeviceMemory, detect_devices, needed_bytes
from qlora_chat.models.prepare import Parts, parts_of
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import Adapter, build
from qlora_chat.models.weights.quantize import eight_bits, quantised
from qlora_chat.models.weights.shards import Named, Stored, write_shards, write_small_files
from qlora_chat.prompt import find_prompt_format
from qlora_chat.settings import Device


@dataclass(frozen=True)
class MergeOptions:
    """What is to be merged, and how."""

    source: Source
    out: Path
    form: Form = "auto"
    data: str | None = None
    """Held-out text; None takes the program's own dialogues."""
    most_tokens: int = 2000
    """Of the data, that count."""
    prompt_format: str = "guanaco"
    device: Device = "auto"
    force: bool = False


def merge(asked: MergeOptions, cache: Cache, notify: Notify) -> Report:
    """Measure every merge and write the best to `asked.out`. ModelError (MergeRefused) if nothing can be written."""
    _check_target(asked.out)
    given = read_text(asked.data, notify) if asked.data else None
    place = _place(asked)
    parts = parts_of(asked.source, place, cache, notify)
    text = _text(asked, given, parts)
    try:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=asked.out.parent, prefix=f".{asked.out.name}-work-") as work:
            return _Work(asked, parts, text, place.device, Path(work), notify).run()
    except (OSError, SafetensorError) as problem:
        raise ModelError(f"{asked.out} cannot be written ({problem}); make room, or name another folder") from problem


def _text(asked: MergeOptions, given: HeldOutText | None, parts: Parts) -> HeldOut:
    window = parts.original.shape.window
    if given is None:
        return own_dialogues(parts.tokenizer, parts.special.bos, window)
    return given.tokenize(parts.tokenizer, window, asked.most_tokens, find_prompt_format(asked.prompt_format))


def _check_target(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is there already; name a new folder with --out")


def _place(asked: MergeOptions) -> DeviceMemory:
    """Where a merge in bf16 fits."""
    if asked.source.base.folder is None or asked.source.adapter is None or asked.source.adapter.folder is None:
        raise ModelError("a merge needs a base and an adapter on this machine: give --base and --adapter")
    base, places = Base.read(asked.source.base.folder), detect_devices(asked.device)
    for place in places:
        if needed_bytes(base, "bf16", 0, place.device) <= place.free:
            return place
    needed, free = needed_bytes(base, "bf16", 0, places[-1].device), max(place.free for place in places)
    raise ModelError(
        f"a measured merge holds the model in bf16, which takes {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free; "
        "free some memory, or serve the adapter unmerged: serve --base --adapter"
    )


@dataclass
class _Work:
    asked: MergeOptions
    parts: Parts
    text: HeldOut
    device: str
    folder: Path
    """Temporary, on the disk of the result."""
    notify: Notify

    def run(self) -> Report:
        adapter = self._adapter()
        logits = self._unmerged(adapter)
        reference = self._reference(logits, adapter)
        self.notify(f"reference: the adapter on the NF4 base, perplexity {reference.perplexity}")
        measured: list[Candidate] = []
        for origin in self._origins():
            for form in FORMS:
                measured.append(self._measured(origin, form, logits))
                self._drop_all_but(pick(measured, self.asked.form), needed=(origin, "bf16"))
        chosen = pick(measured, self.asked.form)
        report = Report(self.asked.source, self._text_name(), self.device, reference, tuple(measured), chosen, self.asked.force)
        self.notify(report.table())
        check(chosen, force=self.asked.force)
        with new_folder(self.asked.out) as folder:
            for path in self._made(chosen.origin, chosen.form).iterdir():
                path.rename(folder / path.name)
            finish(folder, report, self.asked.prompt_format, self.parts)
        return report

    def _text_name(self) -> str:
        return Path(self.asked.data).name if self.asked.data else "the program's own dialogues"

    def _adapter(self) -> Path:
        assert self.asked.source.adapter is not None
        assert self.asked.source.adapter.folder is not None
        return self.asked.source.adapter.folder

    def _origins(self) -> tuple[Origin, ...]:
        return ("nf4",) if self.parts.original.quantised else ("nf4", "original")

    def _unmerged(self, adapter: Path) -> Tensor:
        from qlora_chat.models.adapter.merge import unmerged_logits

        return unmerged_logits(self.parts.nf4, adapter, self.device, self.text)

    def _reference(self, logits: Tensor, adapter: Path) -> Reference:
        size = _bytes(self.parts.nf4.folder) + _bytes(adapter)
        try:
            beside = Adapter.read(adapter)
        except ModelError:  # a variant of LoRA that PEFT alone can hold unmerged
            speed = None
        else:
            speed = self._speed(self.parts.nf4.folder, beside)
        return Reference(len(logits), round(perplexity(logits, self.text.targets), 3), size, speed)

    def _measured(self, origin: Origin, form: Stored, reference: Tensor) -> Candidate:
        from qlora_chat.models.adapter.merge import folder_logits

        folder = self._made(origin, form)
        loss = compare(reference, folder_logits(folder, self.device, self.text), self.text.targets)
        candidate = Candidate(origin, form, loss, _bytes(folder), self._speed(folder))
        self.notify(f"{candidate.name}: KL {loss.kl}, agreement {loss.top1:.1%}, perplexity {loss.perplexity}")
        return candidate

    def _made(self, origin: Origin, form: Stored) -> Path:
        """The folder of one merge, made where it is not there."""
        folder = self.folder / f"{origin}-{form}"
        if folder.is_dir():
            return folder
        folder.mkdir()
        base = self.parts.nf4 if origin == "nf4" else self.parts.original
        write_shards(self._tensors(origin, form, base), folder)
        config = {**base.config, **self.parts.special.config}
        tokenizer = self.parts.tokenizer_folder
        write_small_files(folder, config, self.parts.special.generation, tokenizer, base.folder, stored=form)
        return folder

    def _tensors(self, origin: Origin, form: Stored, base: Base) -> Iterator[Named]:
        if form == "bf16":
            from qlora_chat.models.adapter.merge import merged_bf16

            return merged_bf16(base, self._adapter(), self.device)
        merged = Base.read(self._made(origin, "bf16"))
        return eight_bits(merged) if form == "int8" else quantised(merged, self.device)

    def _drop_all_but(self, best: Candidate, needed: tuple[Origin, Stored]) -> None:
        """A 7B's merges take 48 GB together: what will hardly be chosen goes, and is made again if it is after all."""
        stay = {f"{best.origin}-{best.form}", "-".join(needed)}
        for folder in self.folder.iterdir():
            if folder.name not in stay:
                shutil.rmtree(folder)

    def _speed(self, folder: Path, adapter: Adapter | None = None) -> float:
        base = Base.read(folder)
        weights = build(Checkpoint(folder), base.shape, torch.device(self.device), adapter=adapter)
        speed = round(tokens_per_second(weights, self.notify), 1)
        del weights
        gc.collect()
        return speed


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
