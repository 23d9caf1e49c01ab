"""Several LoRAs beside one base: who is loaded, and whether another may be.

Scope: names, reading, fitting adapters to base and memory. The pass holds them in its own form and applies them to the
rows of the chats whose slots name them: the compiled one (engines/cpu) or torch's (switching.py). Belongs to the engine's
thread. Knows no prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache, free_bytes
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.models.folders import Base, adapter_bytes, check_adapter
from qlora_chat.models.weights.llama import Adapter, LlamaWeights

SPARE_BYTES = 512 * 2**20
"""Left free beside the adapters."""


class AdaptedPass(Protocol):
    """What computes with adapters: each chat has the one that its slot names."""

    @property
    def copies(self) -> float:
        """What it holds of an adapter, as a multiple of the adapter's own bytes."""
        ...

    def hold(self, parts: Mapping[str, tuple[Tensor, Tensor]], scaling: float) -> object:
        """What slots name: A (r, in) and B (out, r) by the linear's Hugging Face name. Compared by identity."""
        ...


class LoraRegistry:
    """The adapters that are loaded over one model."""

    def __init__(self, model: LoadedModel, cache: KVCache, computing: AdaptedPass) -> None:
        """ModelError for a model that came with an adapter (see `base_of`)."""
        self._loaded: dict[str, object] = {}
        self._model, self._cache, self._pass = model, cache, computing
        self._base = base_of(model)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those loaded, in the order of loading."""
        return tuple(self._loaded)

    def get(self, name: str) -> object | None:
        """The adapter of that name, as slots name it."""
        return self._loaded.get(name)

    def load(self, name: str, folder: Path) -> None:
        """Read an adapter. ModelError if the name is taken, or it does not fit base, engine or memory."""
        if name in self._loaded or name == self._model.info.name:
            raise ModelError(f"there is a model called {name!r} already; unload it first, or choose another name")
        check_adapter(folder, self._base)
        self._check_memory(name, folder)
        adapter = Adapter.read(folder)
        try:
            parts = _parts(name, adapter, self._model.weights)
            self._loaded[name] = self._pass.hold(parts, adapter.scaling)
        except (MemoryError, torch.OutOfMemoryError) as problem:
            raise ModelError(f"there is no memory for adapter {name!r}; unload another first") from problem

    def unload(self, name: str) -> None:
        """Take no more requests for it; answers being written keep it to their end. ModelError if it is not loaded."""
        gone = self._loaded.pop(name, None)
        if gone is None:
            raise ModelError(f"no adapter called {name!r} is loaded; loaded: {', '.join(self.names) or 'none'}")
        for slot in self._cache.slots:
            if not slot.busy and slot.adapter is gone:
                slot.adapter = None
                slot.ids.clear()

    def _check_memory(self, name: str, folder: Path) -> None:
        weights = self._model.weights
        needed = int(self._pass.copies * adapter_bytes(folder)) * weights.dtype.itemsize // 2
        free = free_bytes(weights.device)
        if needed + SPARE_BYTES > free:
            raise ModelError(
                f"adapter {name!r} takes {needed / 2**20:,.0f} MiB, and {max(0, free - SPARE_BYTES) / 2**20:,.0f} MiB are free "
                "for it; unload another first"
            )


def base_of(model: LoadedModel) -> Base:
    """What adapters are held against. ModelError for a model that came with one of its own, merged or beside it."""
    if model.base is None or model.info.adapter is not None:
        raise ModelError(
            f"{model.info.name} has an adapter of its own; start with --base BASE --adapter NAME=PATH to have several"
        )
    return model.base


def _parts(name: str, adapter: Adapter, weights: LlamaWeights) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {}
    for key in adapter.tensors:
        module, _, side = key.removeprefix("base_model.model.").rpartition(".lora_")
        if not module.startswith("model.layers."):
            raise ModelError(f"adapter {name!r} changes {module or key}, which needs a merge: open it as the only adapter")
        halves.setdefault(module, {})[side[0]] = adapter.tensors[key].to(weights.device, weights.dtype)
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}
