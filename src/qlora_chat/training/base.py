"""The base of a run: found by its name, and ready to be trained on in NF4.

Scope: what models/ offers, put together for training. A base in 16 bits is quantised once and kept in the cache, where
chat finds it, too. Knows no adapters and no data.
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
class FoundBase:
    """A base on this machine, its headers checked, no weight read."""

    source: Source
    identity: Mapping[str, Any]
    """Name, revision and contents, for the record."""


@dataclass(frozen=True)
class PreparedBase:
    """A base whose tensors can be read."""

    base: Base
    tensors: Mapping[str, Tensor]
    tokenizer: ModelTokenizer
    end_id: int | None
    """What ends a dialogue; None where the tokenizer names none."""


def find_base(name: str, place: DeviceMemory, notify: Notify) -> FoundBase:
    """Resolve a name and check the headers. ModelError or TrainError for what cannot be trained on."""
    cache = Cache(cache_folder(), notify)
    source = resolve(ModelSettings(base=name), Hub(hub_cache_folder(), hub_is_offline()), cache, (place,), notify)
    if source.base.folder is None or check_source(source) is None:
        raise TrainError(
            f"{source.base.name} is not on this machine, only what was merged of it; training needs the base itself"
        )
    part = source.base
    return FoundBase(source, {"name": part.name, "revision": part.revision, "files": fingerprints(source.base.folder)})


def prepare_base(found: FoundBase, place: DeviceMemory, notify: Notify) -> PreparedBase:
    """Its tensors in NF4, its tokenizer and the id that ends a text; a base in 16 bits is quantised first, and kept."""
    ready = prepare(found.source, ("nf4",), (place,), Cache(cache_folder(), notify), notify)
    for line in ready.notices:
        notify(line)
    ready.tokenizer.bos_id = ready.special.bos
    named = ready.tokenizer.token_id("</s>")
    end = named if named in ready.special.stops else min(ready.special.stops, default=None)
    return PreparedBase(ready.base, ready.tensors, ready.tokenizer, end)
