"""Options that several commands share, and the step from options to settings.

Scope: names, help texts and settings. Knows no command. Options that come together are a dataclass; a command takes it as one
parameter and is wrapped by `expanded`.
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

ModelOption = Annotated[str, typer.Option(help="auto, guanaco-7b, smollm2 or demo")]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Hub id, folder or .gguf file of a LLaMA-family base; or smollm2; or demo, the bundled one"),
]
AdapterOption = Annotated[str | None, typer.Option(help="Hub id or folder of a PEFT LoRA adapter for that base")]
PrecisionOption = Annotated[str, typer.Option(help="auto, bf16 or nf4")]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda or cpu")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="prompt format; default: what adapter or base declare or bring, else guanaco")
]
KVCacheDtypeOption = Annotated[
    str,
    typer.Option("--kv-cache-dtype", help="auto, or int8: keys and values in 8 bits, half as many bytes a chat, on a card"),
]
BaseFormOption = Annotated[
    str,
    typer.Option(
        "--base-form",
        help="base that the adapter is applied to: nf4, 16-bit, or auto (as it was trained; 16-bit where nothing says)",
    ),
]
HistoryOption = Annotated[
    str | None,
    typer.Option(
        help="store conversations: sqlite:///FILE, postgresql://USER@HOST/DATABASE or jsonl:FOLDER; "
        "default: QLORA_CHAT_HISTORY, else in memory only"
    ),
]
SystemOption = Annotated[str | None, typer.Option(help="system text; default: the prompt format's own")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@dataclass(frozen=True)
class ModelOptions:
    """The model and how it is loaded."""

    model: ModelOption = "auto"
    base: BaseOption = None
    adapter: AdapterOption = None
    precision: PrecisionOption = "auto"
    device: DeviceOption = "auto"
    adapter_mode: Annotated[
        str,
        typer.Option(
            help="auto (unmerged if it was trained on NF4, else merged where memory allows), or exact: unmerged over NF4"
        ),
    ] = "auto"
    base_form: BaseFormOption = "auto"
    prompt_format: FormatOption = None

    def settings(self, kv_cache_dtype: str = "auto") -> ModelSettings:
        """For one chat. SettingsError for an unknown value, or values that exclude each other."""
        return model_settings(**vars(self), slots=1, kv_cache_dtype=kv_cache_dtype)


@dataclass(frozen=True)
class ServedModelOptions(ModelOptions):
    """The same for a server, which may have several adapters."""

    adapter: Annotated[  # type: ignore[assignment]  # in its place among the options
        list[str] | None,
        typer.Option(help="Hub id or folder of a PEFT LoRA adapter for that base; or NAME=PATH, several times"),
    ] = None

    def settings(self, kv_cache_dtype: str = "auto", slots: int | None = None) -> ModelSettings:
        """For many chats. SettingsError for an unknown value, or values that exclude each other."""
        merged, named = _one_or_named(self.adapter or [])  # type: ignore[arg-type]
        chosen = replace(ModelOptions(**vars(self)), adapter=merged)
        return model_settings(**vars(chosen), adapters=named, slots=slots, kv_cache_dtype=kv_cache_dtype)


@dataclass(frozen=True)
class EngineOptions:
    """Engine options: in this process or on servers."""

    engine: Annotated[
        str, typer.Option(help="local, or http://HOST:PORT/v1 of an OpenAI-compatible server; several with commas")
    ] = "local"
    engine_model: Annotated[
        str | None, typer.Option(help="the name that the servers know the model by; default: the only one")
    ] = None

    def settings(self) -> EngineSettings:
        """SettingsError for a value that is no address."""
        return engine_settings(self.engine, self.engine_model)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: each parameter that is a dataclass becomes an option per field.

    Of Sampling, those are the fields that have a label; SettingsError where a value is out of range.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: _options_of(hint) for name, hint in hints.items() if is_dataclass(hint)}
    options: dict[str, Parameter] = {}
    for name, parameter in signature(command).parameters.items():
        own = {name: parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])}
        options |= groups.get(name, own)

    def called(**values: Any) -> None:
        grouped = {name: hints[name](**{each: values.pop(each) for each in group}) for name, group in groups.items()}
        command(**values, **grouped)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {name: option.annotation for name, option in options.items()}
    called.__signature__ = signature(command).replace(parameters=list(options.values()), return_annotation=None)  # type: ignore[attr-defined]
    return called


def _options_of(group: Any) -> dict[str, Parameter]:
    types = get_type_hints(group, include_extras=True)
    if group is Sampling:
        types = {name: Annotated[types[name], _sampling_option(SAMPLING_SETTINGS[name])] for name in SAMPLING_OPTIONS}
    return {
        each.name: Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=types[each.name])
        for each in fields(group)
        if each.name in types
    }


def _sampling_option(setting: SamplingSetting) -> Any:
    has_span = setting.default is not None
    return typer.Option(help=f"{setting.help} ({setting.minimum:g} to {setting.maximum:g})" if has_span else setting.help)


def model_settings(prompt_format: str | None = None, **fields: Any) -> ModelSettings:
    """ModelSettings from options; SettingsError for an unknown value, or values that exclude each other."""
    from qlora_chat.chat_templates.known import check_format_name

    if prompt_format is not None:
        check_format_name(prompt_format)
    return ModelSettings(prompt_format=prompt_format, **fields)


def _one_or_named(adapters: list[str]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """One adapter to merge, or several with names that stay unmerged. SettingsError for a mixture."""
    split = (text.partition("=") for text in adapters if "=" in text)
    named = [(name, path) for name, _, path in split]
    if len(adapters) == 1 and not named:
        return adapters[0], ()
    if len(named) < len(adapters):
        raise SettingsError("several adapters need names: --adapter NAME=PATH --adapter NAME=PATH")
    return None, tuple(named)
