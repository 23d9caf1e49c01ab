"""Parts that a run's settings name, found and checked by headers: base, adapter to go on from, prompt format, device.

Scope: the steps that a run and its check have in common before a weight is read. Knows no dialogues and no run's folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from qlora_chat.chat_templates.known import open_format
from qlora_chat.models import Notify
from qlora_chat.models.cache import Cache
from qlora_chat.models.chat_format import FormatChoice, format_sources
from qlora_chat.models.hub import Hub
from qlora_chat.models.placement import DeviceMemory, detect_devices
from qlora_chat.models.plan import ResolvedModel
from qlora_chat.models.prepare import ModelText
from qlora_chat.models.resolve import resolve
from qlora_chat.prompt import ChatFormat
from qlora_chat.settings import Device, ModelSettings, cache_folder, hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError
from qlora_chat.training.recipe import AUTO_FORMAT, TrainSettings
from qlora_chat.training.start import StartAdapter


@dataclass(frozen=True)
class ResolvedRun:
    """A run's settings, completed by what they name."""

    settings: TrainSettings
    """With the prompt format's name, and the rank, scale and modules of an adapter to go on from."""
    memory: DeviceMemory
    model: ResolvedModel
    start: StartAdapter | None
    chosen: FormatChoice

    @staticmethod
    def of(settings: TrainSettings, device: Device, notify: Notify) -> ResolvedRun:
        """Find and check everything. ModelError or TrainError for what cannot be trained on."""
        memory = detect_devices(device)[0]
        model = locate_base(settings.base, memory, notify)
        start = StartAdapter.find(settings.start, model.config, notify) if settings.start else None
        settings = start.settings(settings) if start else settings
        sources = format_sources(model.base, model.config, start and start.part, start and start.adapter.record)
        chosen = sources.choose(None if settings.prompt_format == AUTO_FORMAT else settings.prompt_format)
        return ResolvedRun(replace(settings, prompt_format=chosen.name), memory, model, start, chosen)

    @property
    def device(self) -> torch.device:
        """Device of the steps."""
        return torch.device("cuda", 0) if self.memory.device == "cuda" else torch.device("cpu")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Format of activations."""
        compute = self.settings.compute
        bf16 = compute == "bf16" or (compute == "auto" and self.memory.device == "cuda")
        return torch.bfloat16 if bf16 else torch.float32

    def open_format(self, text: ModelText) -> ChatFormat:
        """The prompt format over the base's tokenizer. TrainError where the adapter to go on from has tokens of its own."""
        if self.start:
            self.start.check_text(self.model.config, text)
        return open_format(self.chosen, text.tokenizer)


def locate_base(name: str, device: DeviceMemory, notify: Notify) -> ResolvedModel:
    """Resolve a name and check the headers, without reading weights. ModelError or TrainError if it cannot be trained on."""
    cache = Cache(cache_folder(), notify)
    settings = ModelSettings(base=name, precision="nf4")
    model = resolve(settings, Hub(hub_cache_folder(), hub_is_offline()), cache, (device,), notify)
    if model.base.folder is None:
        raise TrainError(f"{model.base.name} is not on this machine, only a merge of it; training needs the base itself")
    return model
