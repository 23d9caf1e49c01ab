"""Several LoRAs beside one base: each applied, unmerged, to the rows of the chats that asked for it.

Scope: reading them, fitting them to memory, and the products of a pass in which chats have different ones. Belongs to the
engine's thread. Knows no prompts and no names' meaning; `Slot.adapter` says whose keys and values a slot holds.

Shapes: N tokens in the pass, r adapter rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn.functional import linear

from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.llama import Forward, Span
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.models.folders import adapter_bytes, check_adapter
from qlora_chat.models.weights import Adapter, Layer, Linear, LlamaWeights, fastest_on_cpu

SPARE_BYTES = 512 * 2**20
"""Left free beside the adapters."""


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter on its device. Compared by identity: an adapter that is loaded again is another one."""

    name: str
    parts: Mapping[str, tuple[Tensor, Tensor]]
    """A (r, in) and B (out, r), scaled, by the linear's Hugging Face name."""


@dataclass(frozen=True)
class Switched:
    """A product, and beside it the LoRAs of the rows that have one. `parts` names the linears it is fused from."""

    base: Linear
    parts: tuple[tuple[str, slice], ...]
    """(name, its columns of the output)."""
    adapters: Adapters

    def __call__(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for lora, rows in self.adapters.rows:
            for name, columns in self.parts:
                if pair := lora.parts.get(name):
                    y[rows, columns] += linear(linear(x[rows], pair[0]), pair[1])
        return y


class Adapters:
    """The adapters that are loaded over one model."""

    def __init__(self, model: LoadedModel, cache: KVCache) -> None:
        self.rows: Sequence[tuple[Lora, slice]] = ()
        """Whose rows are which, in the pass that is running."""
        self._loaded: dict[str, Lora] = {}
        if model.base is None or model.info.adapter is not None:
            raise ModelError(
                f"{model.info.name} has an adapter of its own; start with --base BASE --adapter NAME=PATH to have several"
            )
        self._model, self._base, self._cache = model, model.base, cache
        self._forward = Forward(_switchable(fastest_on_cpu(model.weights), model.base.feed_forward, self), cache)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those loaded, in the order of loading."""
        return tuple(self._loaded)

    def get(self, name: str) -> Lora | None:
        """The adapter of that name."""
        return self._loaded.get(name)

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """The pass, each chat through its own adapter. -> logits as Forward gives them."""
        rows, begin = [], 0
        for span in spans:
            end = begin + len(span.ids)
            lora = self._cache.slots[span.slot].adapter
            if isinstance(lora, Lora):
                rows.append((lora, slice(begin, end)))
            begin = end
        self.rows = _joined(rows)
        return self._forward(spans)

    def load(self, name: str, folder: Path) -> None:
        """Read an adapter. ModelError if the name is taken, or it does not fit base, engine or memory."""
        if name in self._loaded or name == self._model.info.name:
            raise ModelError(f"there is a model called {name!r} already; unload it first, or choose another name")
        check_adapter(folder, self._base)
        self._check_memory(name, folder)
        self._loaded[name] = _read(name, folder, self._model.weights)

    def unload(self, name: str) -> None:
        """Take no more requests for it; answers being written keep it to their end. ModelError if it is not loaded."""
        if self._loaded.pop(name, None) is None:
            raise ModelError(f"no adapter called {name!r} is loaded; loaded: {', '.join(self.names) or 'none'}")
        for slot in self._cache.slots:
            if not slot.busy and isinstance(slot.adapter, Lora) and slot.adapter.name == name:
                slot.adapter = None
                slot.ids.clear()

    def _check_memory(self, name: str, folder: Path) -> None:
        weights = self._model.weights
        needed = adapter_bytes(folder) * weights.dtype.itemsize // 2
        on_card = weights.device.type == "cuda"
        free = torch.cuda.mem_get_info(weights.device)[0] if on_card else psutil.virtual_memory().available
        if needed + SPARE_BYTES > free:
            raise ModelError(
                f"adapter {name!r} takes {needed / 2**20:,.0f} MiB, and {max(0, free - SPARE_BYTES) / 2**20:,.0f} MiB are free "
                "for it; unload another first"
            )


def _read(name: str, folder: Path, weights: LlamaWeights) -> Lora:
    adapter = Adapter.read(folder)
    halves: dict[str, dict[str, Tensor]] = {}
    for key in adapter.tensors:
        module, _, side = key.removeprefix("base_model.model.").rpartition(".lora_")
        if not module.startswith("model.layers."):
            raise ModelError(f"adapter {name!r} changes {module or key}, which needs a merge: open it as the only adapter")
        halves.setdefault(module, {})[side[0]] = adapter.tensors[key].to(weights.device, weights.dtype)
    return Lora(name, {module: (pair["A"], pair["B"] * adapter.scaling) for module, pair in halves.items()})


def _joined(rows: Sequence[tuple[Lora, slice]]) -> list[tuple[Lora, slice]]:
    """Neighbours with the same adapter as one run of rows."""
    joined: list[tuple[Lora, slice]] = []
    for lora, part in rows:
        if joined and joined[-1][0] is lora and joined[-1][1].stop == part.start:
            joined[-1] = (lora, slice(joined[-1][1].start, part.stop))
        else:
            joined.append((lora, part))
    return joined


def _switchable(weights: LlamaWeights, wide: int, adapters: Adapters) -> LlamaWeights:
    """The same weights with every layer's products open to adapters; `wide` is the feed-forward size."""
    shape = weights.shape
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    everything = slice(None)

    def layer(index: int, plain: Layer) -> Layer:
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        qkv = (
            (attention + "q_proj", slice(queries)),
            (attention + "k_proj", slice(queries, queries + keys)),
            (attention + "v_proj", slice(queries + keys, queries + 2 * keys)),
        )
        gate_up = ((mlp + "gate_proj", slice(wide)), (mlp + "up_proj", slice(wide, 2 * wide)))
        return replace(
            plain,
            qkv=Switched(plain.qkv, qkv, adapters),
            attention_out=Switched(plain.attention_out, ((attention + "o_proj", everything),), adapters),
            gate_up=Switched(plain.gate_up, gate_up, adapters),
            mlp_down=Switched(plain.mlp_down, ((mlp + "down_proj", everything),), adapters),
        )

    return replace(weights, layers=tuple(layer(index, plain) for index, plain in enumerate(weights.layers)))
