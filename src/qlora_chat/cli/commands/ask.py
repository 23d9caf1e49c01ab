"""ask: one question, one answer."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import Persistence
from qlora_chat.cli.options import (
    EngineOptions,
    HistoryOption,
    JsonOption,
    KVCacheDtypeOption,
    ModelOptions,
    SystemOption,
    expanded,
)
from qlora_chat.cli.streams import print_json, read_input
from qlora_chat.settings import Sampling, SettingsError


@expanded
def ask(
    text: Annotated[str, typer.Argument(help="the question; - reads it from standard input")],
    model: ModelOptions,
    engine: EngineOptions,
    sampling: Sampling,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    system: SystemOption = None,
    history: HistoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask one question and print the answer."""
    settings.quiet_libraries()
    model_settings, engine_settings = model.settings(kv_cache_dtype), engine.settings()
    question = read_input() if text == "-" else text
    if not question.strip():
        raise SettingsError("there is nothing to ask: TEXT is empty")

    from qlora_chat.history import HistoryUnavailable
    from qlora_chat.terminal import ask_once

    with closing(Persistence(settings.history_settings(history), settings.log_settings())) as persistence:
        chat = persistence.open_chat(model_settings, engine_settings)
        result, save_error = ask_once(chat, question, sampling, system, show=not as_json)
    if as_json:
        print_json(result)
    if save_error is not None:
        raise HistoryUnavailable(f"the answer is complete, but this turn was not saved: {save_error}")
