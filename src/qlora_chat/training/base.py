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
from qlora_chat.models.cache import Cache, fingerprints
from qlora_chat.models.folders import Base
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import Source, check_source, resolve
from qlora_chat.models.placement import DeviceMemory
from qlora_chat.models.prepare import prepare
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.settings import ModelSettings, cache_folder, hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError


@dataclass(frozen=True)
class LocatedBase:
    """A base on this machine: headers checked, no weight read."""

    source: Source
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
    source = resolve(ModelSettings(base=name), Hub(hub_cache_folder(), hub_is_offline()), cache, (device,), notify)
    part = source.base
    if part.folder is None or check_source(source) is None:
        raise TrainError(f"{part.name} is not on this machine, only a merge of it; training needs the base itself")
    return LocatedBase(source, {"name": part.name, "revision": part.revision, "files": fingerprints(part.folder)})


def prepare_base(located: LocatedBase, device: DeviceMemory, notify: Notify) -> PreparedBase:
    """Return the base's NF4 tensors, tokenizer and end token; a base in 16 bits is quantized into the cache first."""
    model = prepare(located.source, ("nf4",), (device,), Cache(cache_folder(), notify), notify)
    for line in model.notices:
        notify(line)
    model.tokenizer.bos_id = model.special.bos
    eos = model.tokenizer.token_id("</s>")
    end = eos if eos in model.special.stops else min(model.special.stops, default=None)
    return PreparedBase(model.base, model.tensors, model.tokenizer, end)
