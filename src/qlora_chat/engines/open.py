"""The one function that opens an engine: in this process, or on the servers that the settings name."""

from __future__ import annotations

from functools import partial

from qlora_chat.engines import Engine
from qlora_chat.models import Notify
from qlora_chat.settings import EngineSettings, ModelSettings


def open_engine(settings: ModelSettings, notify: Notify, servers: EngineSettings | None = None) -> Engine:
    """Load the model that the settings name into this process, or connect to the servers that run it.

    ModelError or EngineError explains what prevents it. torch is imported only for a model in this process.
    """
    if servers and servers.urls:
        from qlora_chat.engines.remote.engine import open_remote

        return open_remote(settings, servers, notify)
    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.models import open_model

    return LocalEngine(partial(open_model, settings, notify), settings.slots, notify, settings.kv_cache_dtype)
