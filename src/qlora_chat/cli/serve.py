"""serve, chat and ask: the commands that talk with a model."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import Persistence, notify
from qlora_chat.cli.options import (
    AdapterModeOption,
    Adapters,
    Base,
    DeviceOption,
    Engine,
    EngineModel,
    EngineOptions,
    Format,
    History,
    KVCacheDtypeOption,
    Model,
    ModelOptions,
    PrecisionOption,
    Slots,
    System,
    expanded,
    model_settings,
    one_or_named,
)
from qlora_chat.settings import Sampling, ServeSettings, SettingsError

SENDING_AT_THE_END_SECONDS = 1.5
"""A server is stopped within 30 s, most of which are for answers; what it has not sent is on the disk, for the next start."""


def serve(
    model: Model = "auto",
    base: Base = None,
    adapter: Adapters = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    adapter_mode: AdapterModeOption = "auto",
    prompt_format: Format = None,
    engine: Engine = "local",
    engine_model: EngineModel = None,
    slots: Slots = None,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    history: History = None,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine needs QLORA_CHAT_TOKEN")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="default: 7860 or the next free one")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="a host name by which browsers may reach the page")] = None,
    queue: Annotated[int, typer.Option(help="requests that may wait; one more is told to come back later")] = 128,
    max_tokens: Annotated[int | None, typer.Option(help="most tokens an API request may ask for; default: the window")] = None,
    time_limit: Annotated[float, typer.Option(help="seconds that an API request may take")] = 600.0,
    log_requests: Annotated[bool, typer.Option(help="write a line of JSON a request to standard error, without text")] = False,
) -> None:
    """Open the page and the OpenAI-compatible API, on one port."""
    settings.quiet_libraries()
    merged, beside = one_or_named(adapter or [])
    chosen = model_settings(model, base, merged, precision, device, prompt_format, slots)
    chosen = replace(chosen, adapters=beside, adapter_mode=adapter_mode, kv_cache_dtype=kv_cache_dtype)  # type: ignore[arg-type]
    serving = ServeSettings(
        host, port, settings.page_token(), tuple(allow_host or ()), settings.api_tokens(), queue, max_tokens, time_limit,
        log_requests,
    )  # fmt: skip
    where = settings.engine_settings(engine, engine_model)

    from qlora_chat.server.run import serve as serve_page

    kept, sent = settings.history_settings(history), settings.log_settings()
    with closing(Persistence(kept, sent, SENDING_AT_THE_END_SECONDS)) as keeping:
        opened = partial(keeping.chat, chosen, where)
        serve_page(
            opened, serving, notify, logging_on=keeping.logging_on, history_on=keeping.durable,
            outbox_depth=keeping.outbox_depth if keeping.logging_on else None,
        )  # fmt: skip


@expanded
def chat(
    model: ModelOptions,
    engine: EngineOptions,
    sampling: Sampling,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    system: System = None,
    history: History = None,
) -> None:
    """Talk in the terminal. /help lists what can be typed; Ctrl-C stops an answer."""
    settings.quiet_libraries()
    chosen = replace(model.settings(), kv_cache_dtype=kv_cache_dtype)  # type: ignore[arg-type]
    where = engine.settings()

    from qlora_chat.terminal import talk

    with closing(Persistence(settings.history_settings(history), settings.log_settings())) as keeping:
        talk(keeping.chat(chosen, where), sampling, system, logging_on=keeping.logging_on)


@expanded
def ask(
    text: Annotated[str, typer.Argument(help="the question; - reads it from standard input")],
    model: ModelOptions,
    engine: EngineOptions,
    sampling: Sampling,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    system: System = None,
    history: History = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Ask one question and print the answer."""
    settings.quiet_libraries()
    chosen = replace(model.settings(), kv_cache_dtype=kv_cache_dtype)  # type: ignore[arg-type]
    where = engine.settings()
    question = sys.stdin.read() if text == "-" else text
    if not question.strip():
        raise SettingsError("there is nothing to ask: TEXT is empty")

    from qlora_chat.terminal import ask_once

    with closing(Persistence(settings.history_settings(history), settings.log_settings())) as keeping:
        result = ask_once(keeping.chat(chosen, where), question, sampling, system, show=not as_json)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
