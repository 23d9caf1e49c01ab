"""A model for vLLM: a merged one, or a base with unmerged adapters, and the command that serves it.

    names -> folders -> bf16 tensors -> safetensors, tokenizer, chat template -> serve.sh

Scope: what vLLM supports and how it is started. Knows no engine; docs/scale.md says what to do with the result.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qlora_chat.chat_templates.known import FormatChoice, open_format
from qlora_chat.exporting.sources import resolve_in_bf16, source_names, tidy, unmerged_adapters
from qlora_chat.exporting.template import template_file
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.adapter.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFolder
from qlora_chat.models.cache import Cache, check_new_folder, new_folder, write_record
from qlora_chat.models.chat_format import format_sources
from qlora_chat.models.plan import ResolvedModel
from qlora_chat.models.prepare import PreparedModel, prepare, write_model
from qlora_chat.settings import ModelSettings, cache_folder

Layout = Literal["merged", "adapters"]
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
TEMPLATE = "chat_template.jinja"
SCRIPT = "serve.sh"


@dataclass(frozen=True)
class Exported:
    """The written folder."""

    folder: Path
    command: tuple[str, ...]
    """`vllm serve ...`, to be run in the folder."""
    name: str
    """Name of the model on the server: --engine-model."""


@dataclass(frozen=True)
class _Export:
    """All that is decided before a weight is read."""

    name: str
    """Name of the model or base."""
    model: ResolvedModel
    adapters: Mapping[str, AdapterFolder]
    """Adapters to serve unmerged, by the names of requests."""
    format: FormatChoice
    cards: int


def export_for_vllm(
    settings: ModelSettings,
    folder: Path,
    notify: Notify,
    layout: Layout = "merged",
    more: Mapping[str, str] | None = None,
    cards: int = 1,
) -> Exported:
    """Write the folder, complete or not at all. ModelError with the remedy, before any weight is read.

    `merged` merges the adapter into the base; `adapters` leaves it, and `more` by name, unmerged next to it.
    """
    check_new_folder(folder)
    if more and layout == "merged":
        raise ModelError("a merged model holds one adapter: to serve several over one base, use --layout adapters")
    cache = Cache(cache_folder(), notify)
    model = resolve_in_bf16("an export", settings, cache)
    chosen = format_sources(model.base, model.config, model.adapter).choose(settings.prompt_format)
    notify(chosen.line)
    if layout == "merged":
        export = _Export(tidy(model.name), model, {}, chosen, cards)
    else:
        adapters = unmerged_adapters(model, more or {}, notify)
        export = _Export(tidy(model.base.name), _without_adapter(model), adapters, chosen, cards)
    _check(export)
    prepared = prepare(export.model, cache)
    with new_folder(folder) as temporary:
        _write(export, prepared, temporary)
    return Exported(folder, _command(export), next(iter(export.adapters), export.name))


def _write(export: _Export, prepared: PreparedModel, folder: Path) -> None:
    text = prepared.text
    write_model(folder, prepared.tensors.items(), prepared.base, text, "bf16")
    prompt_format = open_format(export.format, text.tokenizer)
    template = template_file(prompt_format, text.tokenizer.written_bos())
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    for name, adapter in export.adapters.items():
        target = folder / "adapters" / name
        target.mkdir(parents=True)
        shutil.copyfile(adapter.folder / ADAPTER_CONFIG, target / ADAPTER_CONFIG)
        _write_adapter(adapter, target / ADAPTER_WEIGHTS)
    format_record = {"prompt_format": export.format.name, "stop_texts": list(prompt_format.stop_texts)}
    write_record(folder, {"exported_for": "vllm", **source_names(export.model, export.adapters), **format_record})
    script = folder / SCRIPT
    script.write_text(_script(_command(export)), encoding="utf-8")
    script.chmod(0o755)
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes for its user alone, and a server is often another one


def _write_adapter(adapter: AdapterFolder, path: Path) -> None:
    """The adapter's tensors by PEFT's names, which are the only ones that vLLM reads."""
    if all(name == stored.text for name, stored in adapter.stored.items()):
        shutil.copyfile(adapter.folder / ADAPTER_WEIGHTS, path)
        return
    from safetensors.torch import save_file

    save_file(dict(adapter.tensors()), path, metadata={"format": "pt"})


def _command(export: _Export) -> tuple[str, ...]:
    command = [
        "vllm", "serve", ".",
        "--served-model-name", export.name,
        "--dtype", "bfloat16",
        "--max-model-len", str(export.model.config.shape.window),
        "--tensor-parallel-size", str(export.cards),
        "--chat-template", TEMPLATE,
    ]  # fmt: skip
    if export.adapters:
        rank = max(adapter.rank for adapter in export.adapters.values())
        command += [
            "--enable-lora",
            "--max-loras", str(len(export.adapters)),
            "--max-lora-rank", str(next(each for each in RANKS if each >= rank)),
            "--lora-modules", *(f"{name}=adapters/{name}" for name in export.adapters),
        ]  # fmt: skip
    return tuple(command)


def _script(command: Sequence[str]) -> str:
    return (
        "#!/bin/sh\n"
        "# Further options may follow: sh serve.sh --host 0.0.0.0 --port 8000 (set VLLM_API_KEY then).\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f'exec {shlex.join(command)} "$@"\n'
    )


# --- checks and names ------------------------------------------------------------------------------------------------


def _check(export: _Export) -> None:
    base = export.model.config
    heads, cards = base.shape.heads, export.cards
    if cards < 1 or heads % cards:
        divisors = [str(count) for count in range(1, heads + 1) if heads % count == 0]
        raise ModelError(f"--cards is {cards}, but its {heads} attention heads split over {', '.join(divisors)}")
    for name, adapter in export.adapters.items():
        adapter.check(base)
        if features := adapter.merge_only_features():
            raise ModelError(f"vLLM does not apply {', '.join(features)} of adapter {name}: export it with --layout merged")
        if adapter.rank > RANKS[-1]:
            raise ModelError(
                f"adapter {name} has rank {adapter.rank}; vLLM goes to {RANKS[-1]}: export it with --layout merged"
            )


def _without_adapter(model: ResolvedModel) -> ResolvedModel:
    if model.cached:
        raise ModelError(f"{model.base.name} is not on this machine, and only the base itself can have unmerged adapters")
    return replace(model, adapter=None, adapter_folder=None)
