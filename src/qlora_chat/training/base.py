"""The base of a run: located by its name, then prepared in NF4.

Scope: the functions of models/ in the order that training needs. A base in 16 bits is quantized once into the cache that
chat reads, too. Knows no adapters and no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qlora_chat.models import Notify
from qlora_chat.models.cache import Cache
from qlora_chat.models.folders import Base
from qlora_chat.models.hub import Hub
from qlora_chat.models.placement import DeviceMemory
from qlora_chat.models.prepare import prepare
from qlora_chat.models.resolve import ResolvedModel, resolve
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.settings import ModelSettings, cache_folder, hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError


@dataclass(frozen=True)
class LocatedBase:
    """A base on this machine: headers checked, no weight read."""

    model: ResolvedModel
    identity: Mapping[str, Any]
    """Name, revision and file fingerprints, for run.json."""


@dataclass(frozen=True)
class PreparedBase:
    """A base with readable tensors."""

    base: Base
    tensors: Mapping[str, Tensor]
    tokenizer: ModelTokenizer
    end_id: int | None
    """Token that ends a dialogue; None if the tokenizer defines none."""


def locate_base(name: str, device: DeviceMemory, notify: Notify) -> LocatedBase:
    """Resolve a name and check the headers. ModelError or TrainError for a base that cannot be trained on."""
    cache = Cache(cache_folder(), notify)
    settings = ModelSettings(base=name, precision="nf4")
    model = resolve(settings, Hub(hub_cache_folder(), hub_is_offline()), cache, (device,), notify)
    part = model.base
    if part.folder is None:
        raise TrainError(f"{part.name} is not on this machine, only a merge of it; training needs the base itself")
    return LocatedBase(model, {"name": part.name, "revision": part.revision, "files": part.fingerprints})


def prepare_base(located: LocatedBase, notify: Notify) -> PreparedBase:
    """Return the base's NF4 tensors, tokenizer and end token; a base in 16 bits is quantized into the cache first."""
    model = prepare(located.model, Cache(cache_folder(), notify), notify)
    for line in model.notices:
        notify(line)
    tokenizer, stops = model.text.tokenizer, model.text.special.stops
    eos = tokenizer.token_id("</s>")
    return PreparedBase(model.base, model.tensors, tokenizer, eos if eos in stops else min(stops, default=None))
