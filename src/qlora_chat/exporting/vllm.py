"""What vLLM serves: a merged model, or a base with adapters beside it, and the exact command.

    names -> folders -> bf16 tensors -> safetensors, tokenizer, chat template -> serve.sh

Scope: what vLLM can take and how it is told. Knows no engine; docs/scale.md says what to do with the result.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_chat import __version__
from qlora_chat.exporting.template import chat_template
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.cache import Cache, new_folder
from qlora_chat.models.folders import RECORD, Base, check_adapter, read_adapter_config, read_json
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import Part, Source, check_source, resolve
from qlora_chat.models.placement import detect_devices
from qlora_chat.models.prepare import PreparedModel, prepare
from qlora_chat.models.tokenizer.folder import tokenizer_folder
from qlora_chat.models.weights.shards import write_shards, write_small_files
from qlora_chat.prompt import DEFAULT_FORMAT, PromptFormat, find_prompt_format
from qlora_chat.settings import ModelSettings, cache_folder, hub_cache_folder, hub_is_offline

Layout = Literal["merged", "adapters"]
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
TEMPLATE = "chat_template.jinja"
SCRIPT = "serve.sh"
_UNSERVED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")
"""Kinds of LoRA that vLLM does not apply."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    command: tuple[str, ...]
    """`vllm serve ...`, to be run in the folder."""
    name: str
    """By which the server knows what was asked for: --engine-model."""


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before a weight is read."""

    name: str
    """Of the model or base."""
    source: Source
    adapters: Mapping[str, Path]
    form: PromptFormat
    cards: int


def export_for_vllm(
    settings: ModelSettings,
    folder: Path,
    notify: Notify,
    layout: Layout = "merged",
    more: Mapping[str, str] | None = None,
    cards: int = 1,
) -> Exported:
    """Write the folder, whole or not at all. ModelError says what is in the way, before any weight is read.

    `merged` puts the adapter into the base; `adapters` leaves it, and `more` by name, beside it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is not empty; give a folder to be made")
    if more and layout == "merged":
        raise ModelError("a merged model holds one adapter: to serve several over one base, use --layout adapters")
    cache, hub = Cache(cache_folder(), notify), Hub(hub_cache_folder(), hub_is_offline())
    places = detect_devices(settings.device)
    source = resolve(settings, hub, cache, places, notify)
    adapters = _adapters(settings, source, more or {}, hub, cache, notify) if layout == "adapters" else {}
    plan = _Plan(_name(source, layout), source, adapters, _format(settings, source), cards)
    wanted = Source(source.name, source.base) if layout == "adapters" else source
    if (base := check_source(source)) is not None:
        _check(plan, base)
    ready = prepare(wanted, ("bf16",), places, cache, notify)
    with new_folder(folder) as temporary:
        _write(plan, ready, tokenizer_folder(source.base.name, ready.base.folder, cache, notify), temporary)
    return Exported(folder, _command(plan, ready), next(iter(plan.adapters), plan.name))


def _write(plan: _Plan, ready: PreparedModel, tokenizer: Path, folder: Path) -> None:
    write_shards(ready.tensors.items(), folder)
    config = {**ready.base.config, **ready.special.config}
    write_small_files(folder, config, ready.special.generation, tokenizer, ready.base.folder, stored="bf16")
    ready.tokenizer.bos_id = ready.special.bos
    (folder / TEMPLATE).write_text(chat_template(plan.form, ready.tokenizer.written_bos()) + "\n", encoding="utf-8")
    for name, adapter in plan.adapters.items():
        target = folder / "adapters" / name
        target.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / file, target / file)
    (folder / RECORD).write_text(json.dumps(_record(plan), indent=2) + "\n", encoding="utf-8")
    script = folder / SCRIPT
    script.write_text(_script(_command(plan, ready)), encoding="utf-8")
    script.chmod(0o755)
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes for its user alone, and a server is often another one


def _command(plan: _Plan, ready: PreparedModel) -> tuple[str, ...]:
    command = [
        "vllm", "serve", ".",
        "--served-model-name", plan.name,
        "--dtype", "bfloat16",
        "--max-model-len", str(ready.base.shape.window),
        "--tensor-parallel-size", str(plan.cards),
        "--chat-template", TEMPLATE,
    ]  # fmt: skip
    if plan.adapters:
        ranks = [int(read_adapter_config(each)["r"]) for each in plan.adapters.values()]
        command += [
            "--enable-lora",
            "--max-loras", str(len(plan.adapters)),
            "--max-lora-rank", str(next(rank for rank in RANKS if rank >= max(ranks))),
            "--lora-modules", *(f"{name}=adapters/{name}" for name in plan.adapters),
        ]  # fmt: skip
    return tuple(command)


def _script(command: Sequence[str]) -> str:
    return (
        "#!/bin/sh\n"
        "# Further options may follow: sh serve.sh --host 0.0.0.0 --port 8000 (set VLLM_API_KEY then).\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f'exec {shlex.join(command)} "$@"\n'
    )


def _record(plan: _Plan) -> dict[str, Any]:
    adapter = plan.source.adapter
    return {
        "tool": f"qlora-chat {__version__}",
        "exported_for": "vllm",
        "base": plan.source.base.name,
        "base_revision": plan.source.base.revision,
        "adapter": None if plan.adapters or adapter is None else adapter.name,
        "adapters": sorted(plan.adapters),
        "prompt_format": plan.form.name,
        "stop_texts": list(plan.form.stop_texts),
    }


# --- checks and names ------------------------------------------------------------------------------------------------


def _check(plan: _Plan, base: Base) -> None:
    shape = base.shape
    if plan.cards < 1 or shape.heads % plan.cards:
        fits = [count for count in range(1, shape.heads + 1) if shape.heads % count == 0]
        raise ModelError(
            f"--cards is {plan.cards}, but its {shape.heads} attention heads split over {', '.join(map(str, fits))}"
        )
    for name, adapter in plan.adapters.items():
        check_adapter(adapter, base)
        config = read_adapter_config(adapter)
        odd = [key for key in _UNSERVED if config.get(key)] + (["bias"] if config.get("bias", "none") != "none" else [])
        if odd:
            raise ModelError(f"vLLM does not apply {', '.join(odd)} of adapter {name}: export it with --layout merged")
        if config["r"] > RANKS[-1]:
            raise ModelError(f"adapter {name} has rank {config['r']}; vLLM goes to {RANKS[-1]}: export it with --layout merged")


def _adapters(
    settings: ModelSettings, source: Source, more: Mapping[str, str], hub: Hub, cache: Cache, notify: Notify
) -> dict[str, Path]:
    """Folders by the names that requests will give. ModelError where there is none, or a name is no name."""
    found: dict[str, Path] = {}
    if source.adapter and source.adapter.folder:
        found[_tidy(source.adapter.name)] = source.adapter.folder
    for name, text in more.items():
        if _tidy(name) != name or name in found:
            raise ModelError(f"--lora names an adapter {name!r}; letters, digits, -, _ and . will do, each name once")
        base = settings.base or str(source.base.folder)
        part = resolve(ModelSettings(base=base, adapter=text), hub, cache, (), notify).adapter
        found[name] = _folder_of(part, text)
    if not found:
        raise ModelError("--layout adapters needs an adapter: give --adapter, or --lora NAME=ID_OR_FOLDER")
    return found


def _folder_of(part: Part | None, text: str) -> Path:
    if part is None or part.folder is None:
        raise ModelError(f"the adapter {text} is not on this machine")
    return part.folder


def _format(settings: ModelSettings, source: Source) -> PromptFormat:
    """What was asked for, else what adapter or base declare."""
    if settings.prompt_format:
        return find_prompt_format(settings.prompt_format)
    folders = [part.folder for part in (source.adapter, source.base) if part and part.folder]
    declared = (read_json(folder / RECORD).get("prompt_format") for folder in folders)
    name = next((each for each in declared if isinstance(each, str)), None)
    return find_prompt_format(name) if name else DEFAULT_FORMAT


def _name(source: Source, layout: Layout) -> str:
    return _tidy(source.base.name if layout == "adapters" else source.name)


def _tidy(name: str) -> str:
    """A name that needs no quotes in a command or a URL."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
    while "--" in kept:
        kept = kept.replace("--", "-")
    return kept.strip("-.") or "model"
