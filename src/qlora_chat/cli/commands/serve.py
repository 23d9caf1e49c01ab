"""serve: the page and the API."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import Persistence, notify
from qlora_chat.cli.options import (
    EngineOptions,
    HistoryOption,
    KVCacheDtypeOption,
    ServedModelOptions,
    expanded,
)
from qlora_chat.settings import ServeSettings

SEND_AT_EXIT_SECONDS = 1.5
"""A server is stopped within 30 s, most of which are for answers; unsent records are on the disk, for the next start."""


@expanded
def serve(
    model: ServedModelOptions,
    engine: EngineOptions,
    slots: Annotated[
        int | None, typer.Option(help="chats that share one forward pass; default: as many as fit in memory, up to 16")
    ] = None,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    history: HistoryOption = None,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine needs QLORA_CHAT_TOKEN")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="default: 7860 or the next free one")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="a host name by which browsers may reach the page")] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="origin of a browser app that may use the API, as http://localhost:3000")
    ] = None,
    queue: Annotated[int, typer.Option(help="requests that may wait; one more is refused with a time to retry")] = 128,
    max_tokens: Annotated[int | None, typer.Option(help="limit of an API request's new tokens; default: the window")] = None,
    time_limit: Annotated[float, typer.Option(help="seconds that an API request may take")] = 600.0,
    log_requests: Annotated[
        bool, typer.Option(help="write a line of JSON per request to standard error, without text")
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="address or network of a proxy whose X-Forwarded headers count")
    ] = None,
    page_operator: Annotated[
        bool, typer.Option(help="whoever opens the page may switch the model and train, though there is a password")
    ] = False,
) -> None:
    """Open the page and the OpenAI-compatible API, on one port."""
    settings.quiet_libraries()
    model_settings, engine_settings = model.settings(kv_cache_dtype, slots), engine.settings()
    serve_settings = ServeSettings(
        host, port, settings.page_token(), tuple(allow_host or ()), settings.api_tokens(), queue, max_tokens, time_limit,
        log_requests, settings.operator_token(), tuple(trusted_proxy or ()), tuple(allow_origin or ()), page_operator,
    )  # fmt: skip

    from qlora_chat.server.run import serve as serve_page

    saved = settings.data_file()
    history_settings, log_settings = settings.history_settings(history, saved=saved), settings.log_settings()
    if history_settings.url == f"sqlite:///{saved}":
        notify(f"history: conversations are saved in {saved}, as was chosen on the page; --history memory: saves none")
    with closing(Persistence(history_settings, log_settings, SEND_AT_EXIT_SECONDS)) as persistence:
        serve_page(
            partial(persistence.open_served_chat, model_settings, engine_settings),
            serve_settings,
            notify,
            logging_on=persistence.logging_on,
            history_on=persistence.durable,
            ended_sessions=persistence.ended_sessions,
            outbox_depth=persistence.outbox_depth if persistence.logging_on else None,
        )
