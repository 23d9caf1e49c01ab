"""Steps that begin every export: a check of the folder, and the adapters that stay unmerged, by name.

Scope: names and folders, before any weight is read. Knows no target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.resolve import ResolvedModel


def unmerged_adapters(model: ResolvedModel, more: Mapping[str, str], locate: Callable[[str], Path]) -> dict[str, AdapterFolder]:
    """The model's own adapter and others, by their names on the server. ModelError for an invalid name, and for none."""
    adapters: dict[str, AdapterFolder] = {}
    if model.adapter and model.adapter_folder:
        adapters[tidy(model.adapter.name)] = model.adapter_folder
    for name, text in more.items():
        if tidy(name) != name or name in adapters:
            raise ModelError(f"--lora names an adapter {name!r}; letters, digits, -, _ and . will do, each name once")
        adapters[name] = AdapterFolder.read(locate(text))
    if not adapters:
        raise ModelError("unmerged adapters are to be exported, but there is none: give --adapter, or --lora NAME=ID_OR_FOLDER")
    return adapters


def tidy(name: str) -> str:
    """A name that needs no quotes in a command or a URL."""
    tidied = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
    while "--" in tidied:
        tidied = tidied.replace("--", "-")
    return tidied.strip("-.") or "model"
