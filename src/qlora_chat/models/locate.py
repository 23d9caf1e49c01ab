"""Names -> folders: a base or an adapter by Hub id, path, alias or bundled, on this machine.

Scope: the only place that turns a name into a folder, fetching what is missing. Knows nothing of memory or merging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.convert import convert_into
from qlora_chat.models.adapter.folder import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS
from qlora_chat.models.cache import Cache, key_of
from qlora_chat.models.folders import has_tokenizer, is_complete_base
from qlora_chat.models.gguf.cached import gguf_part, is_gguf
from qlora_chat.models.hub import (
    Hub,
    SelectFiles,
    adapter_files,
    adapter_files_or_pickle,
    adapter_files_without_weights,
    base_files,
    base_files_without_weights,
    is_hub_id,
)
from qlora_chat.models.part import ModelPart
from qlora_chat.models.smollm2 import SHA256, SMOLLM2, SMOLLM2_ADAPTER, SMOLLM2_BASE, packaged_file

GUANACO = "guanaco-7b"
GUANACO_BASE = "huggyllama/llama-7b"
GUANACO_ADAPTER = "timdettmers/guanaco-7b"
ALIASES = {"decapoda-research/llama-7b-hf": GUANACO_BASE}
"""Repositories that are gone, with one that holds the same weights."""
DEMO = "Llama-Lumi-45M"
BUNDLED = Path(__file__).parent.parent / "bundled"
BUNDLED_BASE = ModelPart(DEMO, BUNDLED / "base")
BUNDLED_ADAPTER = ModelPart(f"{DEMO} chat adapter", BUNDLED / "adapter")


@dataclass(frozen=True)
class RequiredFiles:
    """Files of a repository that a use needs: a test of a local copy, and the selection to fetch."""

    are_in: Callable[[Path], bool]
    select: SelectFiles


def _has_adapter(folder: Path) -> bool:
    weights = (folder / ADAPTER_WEIGHTS, folder / ADAPTER_PICKLE)
    return (folder / ADAPTER_CONFIG).is_file() and any(path.is_file() for path in weights)


WHOLE_BASE = RequiredFiles(is_complete_base, base_files)
BASE_WITHOUT_WEIGHTS = RequiredFiles(
    lambda folder: (folder / "config.json").is_file() and has_tokenizer(folder), base_files_without_weights
)
WHOLE_ADAPTER = RequiredFiles(_has_adapter, adapter_files)
ADAPTER_WITHOUT_WEIGHTS = RequiredFiles(lambda folder: (folder / ADAPTER_CONFIG).is_file(), adapter_files_without_weights)


def parts_of(model: str) -> tuple[str, str] | None:
    """Base and adapter that `--model` stands for, as a folder, file or Hub id each; None for another name."""
    if model == GUANACO:
        return GUANACO_BASE, GUANACO_ADAPTER
    if model == SMOLLM2:
        return str(packaged_file() or SMOLLM2_BASE), str(SMOLLM2_ADAPTER)
    return (str(BUNDLED / "base"), str(BUNDLED / "adapter")) if model == "demo" else None


def parse_name(option: str, text: str, notify: Notify) -> Path | str:
    """A folder, or the id of a Hub repository, aliases replaced. ModelError for anything else."""
    path = Path(text).expanduser()
    if path.is_dir():
        return path.resolve()
    if is_gguf(path):
        raise ModelError(f"{option} is {text!r}, but only a base is read from GGUF; give a folder or Hub id of a PEFT LoRA")
    if path.is_file():
        raise ModelError(f"{option} is {text!r}, a file; give its folder, a Hub id, or for a base a .gguf file")
    if not is_hub_id(text):
        raise ModelError(f"{option} is {text!r}, but there is no such folder, and a Hub id looks like owner/name")
    if text in ALIASES:
        notify(f"{text} is gone from the Hub; {ALIASES[text]} holds the same weights and is used instead")
    return ALIASES.get(text, text)


def local_part(name: Path | str, required: RequiredFiles, hub: Hub) -> ModelPart | None:
    """The folder of that name, or the repository in the Hub's cache; None if files are missing there."""
    if isinstance(name, Path):
        return ModelPart(name.name, name)
    part = hub.cached(name)
    return part if part and required.are_in(part.existing_folder()) else None


def local_base(text: str, required: RequiredFiles, hub: Hub, cache: Cache, notify: Notify) -> ModelPart | str:
    """The base that a name means if it is on this machine, else the Hub id to fetch. ModelError for any other name.

    A GGUF file is converted at its first use; without its weights where the use needs none.
    """
    if text == "demo" and not Path(text, "config.json").is_file():  # a folder of that name is meant only if it is a model
        return BUNDLED_BASE
    if text == SMOLLM2 and not Path(text).exists():
        return local_smollm2_base(required, hub, cache) or SMOLLM2_BASE
    if is_gguf(Path(text).expanduser()):
        return gguf_part(Path(text), cache, weights=required is WHOLE_BASE)
    name = parse_name("--base", text, notify)
    return local_part(name, required, hub) or str(name)


def local_smollm2_base(required: RequiredFiles, hub: Hub, cache: Cache) -> ModelPart | None:
    """The base of smollm2 from its package, else from the Hub's cache. ModelError for a package that is damaged."""
    if path := packaged_file():
        return gguf_part(path, cache, weights=required is WHOLE_BASE, contents=f"sha256:{SHA256}")
    return local_part(SMOLLM2_BASE, required, hub)


def locate_part(option: str, text: str, required: RequiredFiles, hub: Hub, notify: Notify) -> ModelPart:
    """A folder or Hub repository, fetched if necessary. ModelError with the remedy if there is none."""
    name = parse_name(option, text, notify)
    return local_part(name, required, hub) or hub.fetch(str(name), required.select, notify)


def locate_adapter(text: str, hub: Hub, cache: Cache, notify: Notify) -> ModelPart:
    """An adapter by folder or Hub id, fetched or converted if necessary. ModelError with the remedy if there is none."""
    if text == GUANACO_ADAPTER:
        adapter = local_guanaco_adapter(hub, cache)
        return without_pickle(adapter or fetch_guanaco_adapter(hub, notify), cache)
    return locate_part("--adapter", text, WHOLE_ADAPTER, hub, notify)


def local_guanaco_adapter(hub: Hub, cache: Cache) -> ModelPart | None:
    """Guanaco's adapter, which was published as a pickle, if it is here: converted earlier, or as it was fetched."""
    for entry in cache.entries("adapters"):
        if entry.record.get("name") == GUANACO_ADAPTER:
            return ModelPart(GUANACO_ADAPTER, entry.folder, entry.record.get("revision"))
    return local_part(GUANACO_ADAPTER, WHOLE_ADAPTER, hub)


def fetch_guanaco_adapter(hub: Hub, notify: Notify) -> ModelPart:
    """Download Guanaco's adapter as it was published."""
    return hub.fetch(GUANACO_ADAPTER, adapter_files_or_pickle, notify)


def without_pickle(adapter: ModelPart, cache: Cache) -> ModelPart:
    """The adapter in safetensors; a pickle is converted once, automatically, with a notice."""
    pickled = adapter.folder
    if pickled is None or (pickled / ADAPTER_WEIGHTS).is_file():
        return adapter
    cache.notify(f"{adapter.name} was published as a pickle: converting it to safetensors once, in a process of its own")
    key = key_of(adapter.name, adapter.fingerprints)
    source = {"name": adapter.name, "revision": adapter.revision}
    entry = cache.write("adapters", key, lambda folder: {**source, **convert_into(pickled, folder)})
    return ModelPart(adapter.name, entry.folder, adapter.revision)
