"""The options that several commands share, and what becomes of them.

Scope: names, help texts, and the step from options to settings. Knows no command.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qlora_chat.settings import ModelSettings, SettingsError

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
Engine = Annotated[str, typer.Option(help="local, or http://HOST:PORT/v1 of an OpenAI-compatible server; several with commas")]
EngineModel = Annotated[str | None, typer.Option(help="the name that the servers know the model by; default: the only one")]
Temperature = Annotated[float, typer.Option(help="0 (always the likeliest token) to 2")]
TopP = Annotated[float, typer.Option(help="0 to 1 (off)")]
TopK = Annotated[int, typer.Option(help="0 (off) to 200")]
RepetitionPenalty = Annotated[float, typer.Option(help="1 (off) to 2")]
MaxNewTokens = Annotated[int, typer.Option(help="longest answer, in tokens")]
Seed = Annotated[int | None, typer.Option(help="same seed, same answer")]
History = Annotated[
    str | None,
    typer.Option(
        help="keep conversations: sqlite:///FILE, postgresql://USER@HOST/DATABASE or jsonl:FOLDER; "
        "default: QLORA_CHAT_HISTORY, else in memory only"
    ),
]
System = Annotated[str | None, typer.Option(help="system text; default: the prompt format's own")]


def model_settings(
    model: str, base: str | None, adapter: str | None, precision: Any, device: Any, prompt_format: str | None, slots: int | None
) -> ModelSettings:
    """ModelSettings from options; ValueError for an unknown prompt format."""
    from qlora_chat.prompt import prompt_format as known_format

    if prompt_format is not None:
        known_format(prompt_format)
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
