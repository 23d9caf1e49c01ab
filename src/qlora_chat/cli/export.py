"""export: a model as another server wants it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from qlora_chat import settings
from qlora_chat.cli.open import notify
from qlora_chat.cli.options import Adapter, Base, DeviceOption, Format, Model, model_settings
from qlora_chat.settings import SettingsError


def export(
    folder: Annotated[Path, typer.Argument(help="folder to write; must not exist or be empty")],
    target: Annotated[str, typer.Option("--for", help="which server: vllm")] = "vllm",
    model: Model = "auto",
    base: Base = None,
    adapter: Adapter = None,
    device: DeviceOption = "auto",
    prompt_format: Format = None,
    layout: Annotated[str, typer.Option(help="merged (one model), or adapters (a base with adapters beside it)")] = "merged",
    lora: Annotated[list[str] | None, typer.Option(help="NAME=ID_OR_FOLDER of a further adapter; may be repeated")] = None,
    cards: Annotated[int, typer.Option(help="graphics cards that share the model")] = 1,
) -> None:
    """Write a model for vLLM, and the command that serves it."""
    settings.quiet_libraries()
    if target != "vllm":
        raise SettingsError(f"--for is {target!r}, but must be vllm")
    if layout not in ("merged", "adapters"):
        raise SettingsError(f"--layout is {layout!r}, but must be merged or adapters")
    chosen = model_settings(model, base, adapter, "bf16", device, prompt_format, None)
    named: dict[str, Any] = {}
    for each in lora or []:
        name, equals, text = each.partition("=")
        if not equals or not text:
            raise SettingsError(f"--lora is {each!r}, but must be NAME=ID_OR_FOLDER")
        named[name] = text

    from qlora_chat.exporting.vllm import export_for_vllm

    made = export_for_vllm(chosen, folder, notify, layout, named, cards)
    print(f"wrote {made.folder}\n\non the server, in that folder:\n  {shlex.join(made.command)}\n\nthen, here:")
    here = shlex.quote(str(made.folder))
    print(f"  qlora-chat serve --engine http://127.0.0.1:8000/v1 --engine-model {made.name} --base {here}")
