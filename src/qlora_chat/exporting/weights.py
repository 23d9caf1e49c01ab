"""The weights of a GGUF export: the better of two merges, and the loss of the file that is written.

Scope: folders of bf16 tensors, and figures against the unmerged adapter. Knows neither GGUF's metadata nor targets.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_chat.models.adapter.merge_loss import SAME_KL, MergeLoss, compare
from qlora_chat.models.folders import Base
from qlora_chat.models.prepare import nf4_base, write_model
from qlora_chat.models.weights.checkpoint import read_headers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qlora_chat.exporting.gguf import GgufExport


@dataclass(frozen=True)
class Source:
    """A model in 16 bits, to be written as GGUF, and the logits that the file is compared with."""

    base: Base
    origin: str
    """nf4 or original: the base's weights that it is made of."""
    reference: Tensor
    """(N, V), of the unmerged adapter on its NF4 base; of the base itself without an adapter."""


def source_of(export: GgufExport, work: Path) -> Source:
    """The model to write: the base alone, the better merge, or the base for LoRAs."""
    from qlora_chat.models.adapter.merge import folder_logits, unmerged_logits

    model, device, text = export.model, export.model.plan.device, export.held_out
    measured = export.measured
    if measured is None:
        reference = folder_logits(model.config.folder, device, text, _stored_dtype(model.config, device))
        if not model.config.is_nf4:
            return Source(model.config, "original", reference)
        return Source(_written(export, model.config, work / "nf4"), "nf4", reference)
    nf4 = nf4_base(model, export.cache)
    reference = unmerged_logits(nf4, measured, device, text)
    bases = {"nf4": nf4} if model.config.is_nf4 else {"original": model.config, "nf4": nf4}
    losses: dict[str, MergeLoss] = {}
    for origin, base in bases.items():
        written = _written(export, base, work / origin)
        logits = (
            folder_logits(written.folder, device, text) if export.merged else unmerged_logits(written, measured, device, text)
        )
        losses[origin] = loss = compare(reference, logits, text.targets)
        named = "dequantized NF4" if origin == "nf4" else "original 16-bit"
        export.cache.notify(f"{named} + adapter: KL {loss.kl}, agreement {loss.top1:.1%}, perplexity {loss.perplexity}")
    least = min(each.kl for each in losses.values())
    origin = next(each for each, loss in losses.items() if loss.kl <= least + SAME_KL)
    if not export.options.force:  # loss by quantization is the user's choice, and only reported
        losses[origin].check("the best merge", "keep the adapter unmerged (--layout adapters)")
    for other in losses:
        if other != origin:
            shutil.rmtree(work / other)
    return Source(Base.read(work / origin), origin, reference)


def _written(export: GgufExport, base: Base, folder: Path) -> Base:
    """The base in bf16 in a folder, with the adapter if it is to be merged."""
    from qlora_chat.models.adapter.merge import merge_bf16

    folder.mkdir()
    write_model(folder, merge_bf16(base, export.merged, export.model.plan.device), base, export.text, "bf16")
    return Base.read(folder)


def file_loss(export: GgufExport, source: Source, path: Path, work: Path) -> MergeLoss:
    """Loss of the written file, read back as this program reads any GGUF, with the LoRA unmerged if it is not merged."""
    import torch

    from qlora_chat.models.adapter.merge import folder_logits, unmerged_logits
    from qlora_chat.models.gguf.convert import write_base
    from qlora_chat.models.gguf.file import GgufFile

    back, device, text = work / "back", export.model.plan.device, export.held_out
    back.mkdir()
    narrow = device == "cuda" or export.options.kind == "bf16" or bool(export.adapters)
    dtype = torch.bfloat16 if narrow else torch.float16
    write_base(GgufFile(path), back, dtype)
    if adapter := next(iter(export.adapters.values()), None):
        logits = unmerged_logits(Base.read(back), adapter, device, text)
    else:
        logits = folder_logits(back, device, text, dtype)
    shutil.rmtree(back)
    return compare(source.reference, logits, text.targets)


def _stored_dtype(base: Base, device: str) -> torch.dtype:
    """float16 for a base that is stored so and measured on a CPU, where products are widened; else bf16."""
    import torch

    halves = any(each.dtype == "F16" for each in read_headers(base.folder).values())
    return torch.float16 if halves and device == "cpu" else torch.bfloat16
