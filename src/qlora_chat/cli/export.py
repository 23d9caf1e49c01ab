"""export: a model for another server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from qlora_chat import settings
from qlora_chat.cli.open import notify
from qlora_chat.cli.options import AdapterOption, BaseOption, DeviceOption, FormatOption, ModelOption, model_settings
from qlora_chat.settings import SettingsError, one_of


def export(
    folder: Annotated[Path, typer.Argument(help="folder to write; must not exist or be empty")],
    target: Annotated[str, typer.Option("--for", help="which server: vllm")] = "vllm",
    model: ModelOption = "auto",
    base: BaseOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
    prompt_format: FormatOption = None,
    layout: Annotated[str, typer.Option(help="merged (one model), or adapters (a base and unmerged adapters)")] = "merged",
    lora: Annotated[list[str] | None, typer.Option(help="NAME=ID_OR_FOLDER of a further adapter; may be repeated")] = None,
    cards: Annotated[int, typer.Option(help="graphics cards that share the model")] = 1,
) -> None:
    """Write a model for vLLM, and the command that serves it."""
    settings.quiet_libraries()
    one_of("for", target, ("vllm",))
    one_of("layout", layout, ("merged", "adapters"))
    source = model_settings(
        model=model, base=base, adapter=adapter, precision="bf16", device=device, prompt_format=prompt_format
    )
    named: dict[str, Any] = {}
    for each in lora or []:
        name, equals, text = each.partition("=")
        if not equals or not text:
            raise SettingsError(f"--lora is {each!r}, but must be NAME=ID_OR_FOLDER")
        named[name] = text

    from qlora_chat.exporting.vllm import export_for_vllm

    checked_layout: Any = layout
    exported = export_for_vllm(source, folder, notify, checked_layout, named, cards)
    print(f"wrote {exported.folder}\n\non the server, in that folder:\n  {shlex.join(exported.command)}\n\nthen, here:")
    here = shlex.quote(str(exported.folder))
    print(f"  qlora-chat serve --engine http://127.0.0.1:8000/v1 --engine-model {exported.name} --base {here}")
