"""A PEFT adapter's folder: its config, its tensor headers, and its fit to a base.

Scope: LoRA (Hu 2021), checked before any weight is read. Knows nothing of the Hub, of caches or of merging.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    EMBEDDINGS,
    HEAD,
    config_problems,
    merged_features,
    read_adapter_config,
)
from qlora_chat.models.adapter.expected import Comparison
from qlora_chat.models.adapter.names import StoredName, TensorName, normalize, renamed_tensors
from qlora_chat.models.adapter.trained_on import TrainedOn, trained_on
from qlora_chat.models.folders import RECORD, Base, Problem
from qlora_chat.models.trust import read_json
from qlora_chat.models.weights.checkpoint import Checkpoint, TensorHeader, read_header

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_PICKLE = "adapter_model.bin"
__all__ = ["ADAPTER_CONFIG", "ADAPTER_PICKLE", "ADAPTER_WEIGHTS", "AdapterFolder", "read_adapter_config"]


@dataclass(frozen=True)
class AdapterFolder:
    """A LoRA on disk: config and tensor headers, no weights."""

    folder: Path
    config: Mapping[str, Any]
    headers: Mapping[str, TensorHeader]
    """By PEFT's names."""
    stored: Mapping[str, StoredName] = field(default_factory=dict)
    """Name of each tensor in the file."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """qlora_chat.json; {} for an adapter that another program trained."""

    @staticmethod
    def read(folder: Path) -> AdapterFolder:
        """Read config, record and headers. ModelError for another kind of adapter, a pickle, or weights under another name."""
        config = read_adapter_config(folder)
        path = folder / ADAPTER_WEIGHTS
        if not path.is_file():  # PEFT reads that name alone, and would fall back on a pickle
            raise ModelError(_without_weights(folder))
        headers = normalize(folder, read_header(path), config["r"])
        return AdapterFolder(folder, config, *headers, read_json(folder / RECORD))

    @property
    def rank(self) -> int:
        """Rank of its matrices, unless rank_pattern names others."""
        return int(self.config["r"])

    @property
    def bytes(self) -> int:
        """Memory of its tensors in bf16."""
        return 2 * sum(math.prod(header.shape) for header in self.headers.values())

    def trained_on(self, name: str) -> TrainedOn:
        """The form of the base that this adapter was trained on; `name` is its Hub id, if it has one."""
        return trained_on(name, self.folder, self.config, self.record)

    def vocabulary(self, base: Base) -> int:
        """Rows of the embeddings once the adapter is applied: the base's, and those of added tokens."""
        return Comparison(base, self.config, self.headers).vocabulary

    def unties(self, base: Base) -> bool:
        """True if the adapter changes embeddings or head of a base that ties them, in a way that may leave them different.

        PEFT adds a LoRA of each to the same rows where the adapter keeps both tied, which is what neither was trained with.
        """
        if not base.shape.tied_head:
            return False
        names = [TensorName.of(name) for name in self.headers]
        kept = self.config.get("ensure_weight_tying")
        changed = {each.module for each in names if (each.part.startswith("lora_") if kept else not each.is_token_row)}
        return not changed.isdisjoint((EMBEDDINGS, HEAD))

    def merge_only_features(self) -> list[str]:
        """Config keys and tensors that only a merge can apply (DoRA, per-layer ranks, whole modules, biases)."""
        features = merged_features(self.config)
        whole = next((name for name in sorted(self.headers) if not TensorName.of(name).is_matrix), None)
        return features or ([whole] if whole else [])

    def merge_only_on(self, base: Base) -> list[str]:
        """Features that only a merge can apply to this base."""
        return self.merge_only_features() or (["a head that the base ties to its embeddings"] if self.unties(base) else [])

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by PEFT's names, each read on access."""
        return renamed_tensors(Checkpoint(self.folder, files=[self.folder / ADAPTER_WEIGHTS]), self.stored)

    def check(self, base: Base) -> None:
        """Check that the adapter fits the base. ModelError for the first problem."""
        if problem := next(self.problems(base), None):
            raise ModelError(f"the adapter in {self.folder} does not fit the base: {problem}")

    def problems(self, base: Base) -> Iterator[Problem]:
        """Obstacles to applying the whole of the adapter to the base: config keys, tensors, shapes, vocabulary."""
        if base.is_int8:
            why = "adding to weights in 8 bits would lose much of the adapter"
            yield Problem("the base is in 8 bits", why, "give the 16-bit or NF4 base that the adapter was tuned on")
        yield from config_problems(self.config)
        if not self.headers:
            yield Problem("the adapter holds no lora_A and lora_B", "there is nothing to apply", "train or fetch it again")
            return
        yield from Comparison(base, self.config, self.headers).problems()


def _without_weights(folder: Path) -> str:
    if (folder / ADAPTER_PICKLE).is_file():
        return (
            f"the adapter in {folder} is a pickle ({ADAPTER_PICKLE}), which can run code when read; "
            f"turn it into safetensors once: qlora-chat convert-adapter {folder} NEW_FOLDER"
        )
    return f"{folder} holds no {ADAPTER_WEIGHTS}; rename the adapter's weights to that"
