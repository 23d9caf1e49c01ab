"""The adapters loaded over one base: their names, and whether another one may be loaded.

Scope: names, reading, and the checks against base and memory. The forward pass packs each adapter into its own form and
applies it to the chats whose KV-cache slots name it. Belongs to the engine's thread. Knows no prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlora_chat.engines.core.forward_pass import AdapterPass
from qlora_chat.engines.core.kv_cache import KVCache, free_bytes
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.own_text import own_text
from qlora_chat.models.folders import Base
from qlora_chat.models.weights.llama import Adapter, LlamaWeights

RESERVED_BYTES = 512 * 2**20
"""Left free next to the adapters."""


class LoraRegistry:
    """Adapters by name."""

    def __init__(self, model: LoadedModel, cache: KVCache, adapter_pass: AdapterPass) -> None:
        self._loaded: dict[str, object] = {}
        self._model, self._cache, self._pass = model, cache, adapter_pass

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded adapters in the order of loading."""
        return tuple(self._loaded)

    def get(self, name: str) -> object | None:
        """Adapter of that name, as slots name it; None if it is not loaded."""
        return self._loaded.get(name)

    def load(self, name: str, folder: AdapterFolder) -> None:
        """Read and pack an adapter. ModelError if the name is in use, if it does not fit base, engine or memory, or if the
        model was opened with an adapter of its own."""
        base = self._model.base
        if base is None or self._model.info.adapter is not None:
            raise ModelError(
                f"{self._model.info.name} has an adapter of its own; start with --base BASE --adapter NAME=PATH to have several"
            )
        if name in self._loaded or name == self._model.info.name:
            raise ModelError(f"there is a model called {name!r} already; unload it first, or choose another name")
        folder.check(base)
        self._check_text(name, folder, base)
        self._check_memory(name, folder)
        adapter = Adapter.read(folder)
        try:
            self._loaded[name] = self._pass.pack(_matrices(name, adapter, self._model.weights), adapter.scaling)
        except (MemoryError, torch.OutOfMemoryError) as problem:
            raise ModelError(f"there is no memory for adapter {name!r}; unload another first") from problem

    def unload(self, name: str) -> None:
        """Accept no more requests for an adapter; running answers finish. ModelError if it is not loaded."""
        adapter = self._loaded.pop(name, None)
        if adapter is None:
            raise ModelError(f"no adapter called {name!r} is loaded; loaded: {', '.join(self.names) or 'none'}")
        for slot in self._cache.slots:
            if not slot.busy and slot.adapter is adapter:
                slot.adapter = None
                slot.ids.clear()

    def _check_text(self, name: str, folder: AdapterFolder, base: Base) -> None:
        """ModelError for an adapter whose tokens or ends of answers are not those that all adapters share."""
        model = self._model
        if brought := own_text(folder.folder, base, model.tokenizer, model.info.stop_token_ids):
            raise ModelError(
                f"adapter {name!r} brings {brought}, and adapters that share a base share its tokenizer; serve it alone "
                f"(--base BASE --adapter {folder.folder}), or merge it (qlora-chat merge) and serve the result"
            )

    def _check_memory(self, name: str, folder: AdapterFolder) -> None:
        weights = self._model.weights
        needed = int(self._pass.copies * folder.bytes) * weights.dtype.itemsize // 2
        free = free_bytes(weights.device)
        if needed + RESERVED_BYTES > free:
            raise ModelError(
                f"adapter {name!r} takes {needed / 2**20:,.0f} MiB, and {max(0, free - RESERVED_BYTES) / 2**20:,.0f} MiB are "
                "free for it; unload another first"
            )


def _matrices(name: str, adapter: Adapter, weights: LlamaWeights) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key in adapter.tensors:
        module, _, side = key.removeprefix("base_model.model.").rpartition(".lora_")
        if not module.startswith("model.layers."):
            raise ModelError(f"adapter {name!r} changes {module or key}, which needs a merge: open it as the only adapter")
        sides.setdefault(module, {})[side[0]] = adapter.tensors[key].to(weights.device, weights.dtype)
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}
