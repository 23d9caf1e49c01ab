"""Who is being talked to, where the weights are on another machine: tokenizer, window, format and stops, and no weight.

Scope: the same names as resolve.py understands, down to the small files alone. Imports no torch. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelError, ModelInfo, Notify
from qlora_chat.models.cache import Cache
from qlora_chat.models.folders import RECORD, has_tokenizer, read_json
from qlora_chat.models.hub import Hub, is_hub_id
from qlora_chat.models.locate import ALIASES, DEMO, GUANACO, GUANACO_ADAPTER, GUANACO_BASE, demo
from qlora_chat.models.tokenizer.folder import tokenizer_folder
from qlora_chat.models.tokenizer.special_tokens import special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.shape import LlamaShape
from qlora_chat.settings import ModelSettings, cache_folder, hub_cache_folder, hub_is_offline

DEFAULT_FORMAT = "guanaco"
_SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", RECORD)


@dataclass(frozen=True)
class Identity:
    """What prompts and stops need to know of a model that runs elsewhere."""

    tokenizer: ModelTokenizer
    info: ModelInfo
    bos_text: str
    """How the beginning of a text is written where a server takes text only; "" where nothing begins it."""

    def harmless(self, text: str) -> str:
        """Text in which another tokenizer finds no special token: a typed "</s>" becomes "< /s>"."""
        for name in self.tokenizer.special_names:
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return text


@dataclass(frozen=True)
class _Place:
    """A folder with small files, and the name they go by."""

    name: str
    folder: Path


def identify(settings: ModelSettings, notify: Notify) -> Identity:
    """Tokenizer and facts of the model that the settings name; `auto` is not a name here. ModelError says what is missing."""
    hub = Hub(hub_cache_folder(), hub_is_offline())
    base, adapter, notices = _named(settings, hub, notify)
    files = tokenizer_folder(base.name, base.folder, Cache(cache_folder(), notify), notify)
    tokenizer = ModelTokenizer.read(files, None)
    config = read_json(base.folder / "config.json")
    special = special_ids(base.name, base.folder, config, tokenizer, files)
    tokenizer.bos_id = special.bos
    notices = (*notices, *special.notices)
    info = ModelInfo(
        name=f"{DEMO} (demo)" if settings.base is None and settings.model == "demo" else adapter.name if adapter else base.name,
        base=base.name,
        adapter=adapter.name if adapter else None,
        precision="remote",
        device="another machine",
        window=_window(config, base.folder),
        prompt_format=settings.prompt_format or _declared_format([adapter, base]) or DEFAULT_FORMAT,
        stop_token_ids=special.stops,
        notices=notices,
    )
    return Identity(tokenizer, info, tokenizer.written_bos())


def _named(settings: ModelSettings, hub: Hub, notify: Notify) -> tuple[_Place, _Place | None, tuple[str, ...]]:
    if settings.base:
        adapter = _adapter(settings.adapter, hub, notify) if settings.adapter else None
        return _base(settings.base, hub, notify), adapter, ()
    if settings.model == "demo":
        source = demo()
        parts = [_Place(part.name, part.folder) for part in (source.base, source.adapter) if part and part.folder]
        return parts[0], parts[1], source.notices
    if settings.model == GUANACO:
        return _base(GUANACO_BASE, hub, notify), _Place(GUANACO_ADAPTER, Path()), ()
    raise ModelError("which model the server runs is not known: name it with --base, or --model demo or guanaco-7b")


def _base(text: str, hub: Hub, notify: Notify) -> _Place:
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _Place(folder.name, folder.resolve())
    if not is_hub_id(text):
        raise ModelError(f"--base is {text!r}, but there is no such folder, and a Hub id looks like owner/name")
    text = ALIASES.get(text, text)
    here = hub.cached(text)
    if here is None or not (here.folder / "config.json").is_file() or not has_tokenizer(here.folder):
        here = hub.fetch(text, _small_files, notify)
    return _Place(text, here.folder)


def _adapter(text: str, hub: Hub, notify: Notify) -> _Place:
    """Of an adapter, its name and the format that it declares: its weights are the server's business."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _Place(folder.name, folder.resolve())
    if not is_hub_id(text):
        raise ModelError(f"--adapter is {text!r}, but there is no such folder, and a Hub id looks like owner/name")
    if text == GUANACO_ADAPTER:
        return _Place(text, Path())
    return _Place(text, (hub.cached(text) or hub.fetch(text, _small_adapter_files, notify)).folder)


def _small_files(repository: str, names: Sequence[str]) -> list[str]:
    chosen = [name for name in _SMALL if name in names]
    if "config.json" not in chosen or not {"tokenizer.json", "tokenizer.model"} & set(chosen):
        raise ModelError(f"{repository} lacks config.json or a tokenizer; give the base that the server runs")
    return chosen


def _small_adapter_files(repository: str, names: Sequence[str]) -> list[str]:
    if "adapter_config.json" not in names:
        raise ModelError(f"{repository} holds no adapter_config.json; give a PEFT LoRA adapter")
    return [name for name in ("adapter_config.json", RECORD) if name in names]


def _window(config: dict[str, Any], folder: Path) -> int:
    try:
        return LlamaShape.from_config(config).window
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ModelError(f"{folder / 'config.json'} lacks or garbles a setting ({problem}); fetch it again") from problem


def _declared_format(places: Sequence[_Place | None]) -> str | None:
    declared = (read_json(place.folder / RECORD).get("prompt_format") for place in places if place and place.folder.parts)
    return next((name for name in declared if isinstance(name, str)), None)
