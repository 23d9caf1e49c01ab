"""export: a model for another server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from qlora_chat import settings
from qlora_chat.cli.open import notify
from qlora_chat.cli.options import (
    AdapterOption,
    BaseOption,
    DeviceOption,
    FormatOption,
    ModelOption,
    SystemOption,
    model_settings,
)
from qlora_chat.settings import ModelSettings, SettingsError, one_of


def export(
    folder: Annotated[Path, typer.Argument(help="folder to write; must not exist or be empty")],
    target: Annotated[str, typer.Option("--for", help="which server: vllm, gguf (llama.cpp) or ollama")] = "vllm",
    model: ModelOption = "auto",
    base: BaseOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
    prompt_format: FormatOption = None,
    layout: Annotated[
        str,
        typer.Option(help="merged (one model), adapters (a base and unmerged adapters), or for gguf lora (adapters alone)"),
    ] = "merged",
    lora: Annotated[list[str] | None, typer.Option(help="NAME=ID_OR_FOLDER of a further adapter; may be repeated")] = None,
    cards: Annotated[int, typer.Option(help="for vllm: graphics cards that share the model")] = 1,
    kind: Annotated[str, typer.Option("--type", help="for gguf and ollama: f16, bf16, q8_0, q4_0 or q4_1")] = "f16",
    system: SystemOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="for gguf and ollama: write a merge that breaks merge's limits")
    ] = False,
) -> None:
    """Write a model for vLLM, llama.cpp or Ollama, and the command that serves it."""
    settings.quiet_libraries()
    one_of("for", target, ("vllm", "gguf", "ollama"))
    if target == "vllm":
        one_of("layout", layout, ("merged", "adapters"))
    if system is not None and target != "ollama":
        raise SettingsError("--system is for a Modelfile: give it with --for ollama")
    source = model_settings(
        model=model, base=base, adapter=adapter, precision="bf16", device=device, prompt_format=prompt_format
    )
    more = _named(lora or [])
    checked_layout: Any = layout
    if target == "vllm":
        _for_vllm(source, folder, checked_layout, more, cards)
        return
    from qlora_chat.exporting.gguf import GgufOptions

    checked_target: Any = target
    _for_gguf(source, GgufOptions(folder, checked_target, kind, checked_layout, more, system, force))


def _named(lora: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for each in lora:
        name, equals, text = each.partition("=")
        if not equals or not text:
            raise SettingsError(f"--lora is {each!r}, but must be NAME=ID_OR_FOLDER")
        named[name] = text
    return named


def _for_vllm(source: ModelSettings, folder: Path, layout: Any, more: dict[str, str], cards: int) -> None:
    from qlora_chat.exporting.vllm import export_for_vllm

    exported = export_for_vllm(source, folder, notify, layout, more, cards)
    print(f"wrote {exported.folder}\n\non the server, in that folder:\n  {shlex.join(exported.command)}\n\nthen, here:")
    here = shlex.quote(str(exported.folder))
    print(f"  qlora-chat serve --engine http://127.0.0.1:8000/v1 --engine-model {exported.name} --base {here}")


def _for_gguf(source: ModelSettings, options: Any) -> None:
    from qlora_chat.exporting.gguf import export_gguf

    exported = export_gguf(source, options, notify)
    print(f"wrote {exported.folder}\n\nin that folder:")
    if options.target == "ollama":
        name = exported.name.lower()
        print(f"  ollama create {name} -f Modelfile\n  ollama run {name}")
        return
    loras = [part for file in exported.adapters for part in ("--lora", file)]
    stops = [part for text in exported.stop_texts for part in ("--reverse-prompt", text)]
    print(f"  {shlex.join(['llama-cli', '--jinja', '--model', exported.model or 'BASE.gguf', *loras[:2], *stops])}")
    print(f"  {shlex.join(['llama-server', '--jinja', '--model', exported.model or 'BASE.gguf', *loras])}")
