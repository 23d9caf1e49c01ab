"""chat: a conversation in the terminal."""

from __future__ import annotations

from contextlib import closing

from qlora_chat import settings
from qlora_chat.cli.open import Persistence
from qlora_chat.cli.options import EngineOptions, HistoryOption, KVCacheDtypeOption, ModelOptions, SystemOption, expanded
from qlora_chat.settings import Sampling


@expanded
def chat(
    model: ModelOptions,
    engine: EngineOptions,
    sampling: Sampling,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    system: SystemOption = None,
    history: HistoryOption = None,
) -> None:
    """Talk in the terminal. /help lists what can be typed; Ctrl-C stops an answer."""
    settings.quiet_libraries()
    model_settings, engine_settings = model.settings(kv_cache_dtype), engine.settings()

    from qlora_chat.cli.line_editor import line_reader, unedited_typing
    from qlora_chat.terminal import talk

    with (
        unedited_typing(),
        closing(Persistence(settings.history_settings(history), settings.log_settings())) as persistence,
    ):
        opened = persistence.open_chat(model_settings, engine_settings)
        talk(opened, sampling, system, line_reader(), logging_on=persistence.logging_on)
