"""The options that several commands share, and what becomes of them.

Scope: names, help texts, and the step from options to settings. Knows no command. Options that come together are a
dataclass; a command takes it as one parameter and is wrapped by `expanded`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import Parameter, signature
from typing import Annotated, Any, get_type_hints

import typer

from qlora_chat.settings import (
    SAMPLING_OPTIONS,
    SAMPLING_SETTINGS,
    EngineSettings,
    ModelSettings,
    Sampling,
    SamplingSetting,
    SettingsError,
    engine_settings,
)

Model = Annotated[str, typer.Option(help="auto, guanaco-7b or demo")]
Base = Annotated[str | None, typer.Option(help="Hub id or folder of a LLaMA-family base, or demo for the bundled one")]
Adapter = Annotated[str | None, typer.Option(help="Hub id or folder of a PEFT LoRA adapter for that base")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="Hub id or folder of a PEFT LoRA adapter for that base; or NAME=PATH, several times"),
]
PrecisionOption = Annotated[str, typer.Option(help="auto, bf16 or nf4")]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda or cpu")]
Format = Annotated[str | None, typer.Option("--format", help="prompt format; default: what the adapter declares, else guanaco")]
Slots = Annotated[
    int | None, typer.Option(help="chats that share one forward pass; default: as many as fit in memory, up to 16")
]
KVCacheDtypeOption = Annotated[
    str,
    typer.Option("--kv-cache-dtype", help="auto, or int8: keys and values in 8 bits, half as many bytes a chat, on a card"),
]
AdapterModeOption = Annotated[
    str,
    typer.Option(
        "--adapter-mode",
        help="auto (merged where memory allows), or exact: beside the base in NF4, unmerged, as it was trained",
    ),
]
Engine = Annotated[str, typer.Option(help="local, or http://HOST:PORT/v1 of an OpenAI-compatible server; several with commas")]
EngineModel = Annotated[str | None, typer.Option(help="the name that the servers know the model by; default: the only one")]
History = Annotated[
    str | None,
    typer.Option(
        help="keep conversations: sqlite:///FILE, postgresql://USER@HOST/DATABASE or jsonl:FOLDER; "
        "default: QLORA_CHAT_HISTORY, else in memory only"
    ),
]
System = Annotated[str | None, typer.Option(help="system text; default: the prompt format's own")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, where and how it is held."""

    model: Model = "auto"
    base: Base = None
    adapter: Adapter = None
    precision: PrecisionOption = "auto"
    device: DeviceOption = "auto"
    adapter_mode: AdapterModeOption = "auto"
    prompt_format: Format = None

    def settings(self) -> ModelSettings:
        """For a program with one chat. ValueError for an unknown prompt format, SettingsError for what does not go together."""
        chosen = model_settings(self.model, self.base, self.adapter, self.precision, self.device, self.prompt_format, slots=1)
        return replace(chosen, adapter_mode=self.adapter_mode)  # type: ignore[arg-type]


@dataclass(frozen=True)
class EngineOptions:
    """Where the model runs."""

    engine: Engine = "local"
    engine_model: EngineModel = None

    def settings(self) -> EngineSettings:
        """SettingsError for addresses that are none."""
        return engine_settings(self.engine, self.engine_model)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: each parameter that is a dataclass stands for its fields, an option each.

    Of Sampling, those are the fields that have a label; SettingsError where a value is out of range.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    options: dict[str, Parameter] = {}
    for name, parameter in signature(command).parameters.items():
        if name not in groups:
            options[name] = parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
            continue
        options |= _options_of(groups[name])

    def called(**given: Any) -> None:
        grouped = {name: kind(**{each: given.pop(each) for each in _options_of(kind)}) for name, kind in groups.items()}
        command(**given, **grouped)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {name: option.annotation for name, option in options.items()}
    called.__signature__ = signature(command).replace(parameters=list(options.values()), return_annotation=None)  # type: ignore[attr-defined]
    return called


def _options_of(group: type) -> dict[str, Parameter]:
    types = get_type_hints(group, include_extras=True)
    if group is Sampling:
        declared = {name: SAMPLING_SETTINGS[name] for name in SAMPLING_OPTIONS}
        types = {name: Annotated[types[name], _sampling_option(setting)] for name, setting in declared.items()}
    return {
        each.name: Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=types[each.name])
        for each in fields(group)
        if each.name in types
    }


def _sampling_option(setting: SamplingSetting) -> Any:
    return typer.Option(
        help=setting.help if setting.default is None else f"{setting.help} ({setting.minimum:g} to {setting.maximum:g})"
    )


def model_settings(
    model: str, base: str | None, adapter: str | None, precision: Any, device: Any, prompt_format: str | None, slots: int | None
) -> ModelSettings:
    """ModelSettings from options; ValueError for an unknown prompt format."""
    from qlora_chat.prompt import find_prompt_format

    if prompt_format is not None:
        find_prompt_format(prompt_format)
    return ModelSettings(model, base, adapter, precision, device, prompt_format, slots)


def one_or_named(adapters: list[str]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """One adapter to merge, or several with names to keep beside the base. SettingsError for a mixture."""
    split = (text.partition("=") for text in adapters if "=" in text)
    named = [(name, path) for name, _, path in split]
    if len(adapters) == 1 and not named:
        return adapters[0], ()
    if len(named) < len(adapters):
        raise SettingsError("several adapters need names: --adapter NAME=PATH --adapter NAME=PATH")
    return None, tuple(named)
