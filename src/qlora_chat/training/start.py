"""The adapter that a run goes on from (`train --from`): checked as chat checks it, then the trained one's first values.

Scope: its config and headers before a weight is read, then its tensors. Knows no steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from qlora_chat.models import Notify
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.names import TensorName
from qlora_chat.models.adapter.own_text import own_text
from qlora_chat.models.cache import Cache
from qlora_chat.models.folders import Base
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import locate_adapter
from qlora_chat.models.part import ModelPart
from qlora_chat.models.prepare import ModelText
from qlora_chat.models.weights.llama import Adapter
from qlora_chat.models.weights.shape import PROJECTIONS
from qlora_chat.models.weights.shards import check_finite
from qlora_chat.settings import cache_folder, hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError
from qlora_chat.training.recipe import TrainSettings

REMEDY = "merge it (qlora-chat merge), and train on the result with --base"


@dataclass(frozen=True)
class StartAdapter:
    """An adapter that fits the base, and whose every tensor is trained on."""

    part: ModelPart
    adapter: AdapterFolder
    targets: tuple[str, ...]
    """Linears that it changes in every layer."""

    @staticmethod
    def find(name: str, base: Base, notify: Notify) -> StartAdapter:
        """Locate and check an adapter. ModelError or TrainError for one that does not fit, or that training cannot hold."""
        hub, cache = Hub(hub_cache_folder(), hub_is_offline()), Cache(cache_folder(), notify)
        part = locate_adapter(name, hub, cache, notify)
        adapter = AdapterFolder.read(part.existing_folder())
        adapter.check(base)
        if features := adapter.merge_only_on(base):
            raise TrainError(f"--from {name} uses {', '.join(features)}, which training does not have: {REMEDY}")
        modules = {TensorName.of(each).module for each in adapter.headers}
        targets = [each for each in PROJECTIONS if any(module.endswith(each) for module in modules)]
        whole = {f"model.layers.{index}.{each}" for index in range(base.shape.layers) for each in targets}
        if different := sorted(modules ^ whole):
            raise TrainError(
                f"--from {name} does not change the same linears in every layer ({different[0]}), as training does: {REMEDY}"
            )
        return StartAdapter(part, adapter, tuple(each.rpartition(".")[2] for each in targets))

    def settings(self, settings: TrainSettings) -> TrainSettings:
        """The run's settings with the adapter's rank, scale and modules."""
        rank = self.adapter.rank
        return replace(settings, r=rank, alpha=float(Adapter.read(self.adapter).scaling * rank), targets=self.targets)

    def check_text(self, base: Base, text: ModelText) -> None:
        """TrainError for an adapter with tokens or ends of answers that the base lacks: the run uses the base's."""
        if brought := own_text(self.adapter.folder, base, text.tokenizer, text.special.stops):
            raise TrainError(f"--from {self.part.name} brings {brought}, and training uses the base's: {REMEDY}")

    def lines(self) -> Iterator[str]:
        """Lines for the user."""
        scale = f"rank {self.adapter.rank}, alpha {self.adapter.config['lora_alpha']}"
        yield f"going on from {self.part.name}: {scale}, {', '.join(self.targets)}"
        if self.adapter.trained_on(self.part.name).form == "16-bit":
            yield f"{self.part.name} was trained on the base in 16 bits, and this run trains it on the base in NF4"

    def tensors(self) -> dict[str, Tensor]:
        """The weights by PEFT's names. ModelError for NaN or infinity."""
        return {name: check_finite(f"{name} of {self.part.name}", each) for name, each in self.adapter.tensors().items()}
