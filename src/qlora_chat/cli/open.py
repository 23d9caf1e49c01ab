"""Chats and histories as commands open and close them."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qlora_chat.settings import EngineSettings, HistorySettings, LogSettings, ModelSettings, data_file
from qlora_chat.text import plain

if TYPE_CHECKING:
    from qlora_chat.chat import Chat
    from qlora_chat.delivery.recorder import LogRecorder
    from qlora_chat.delivery.sender import LogSender
    from qlora_chat.history import HistoryStore
    from qlora_chat.models import ModelInfo
    from qlora_chat.prompt import ChatFormat


def open_chat(
    model: ModelSettings,
    engine: EngineSettings | None = None,
    history: HistoryStore | None = None,
    recorder: LogRecorder | None = None,
) -> Chat:
    """Load the model, or connect to its servers. A `history` of None keeps turns in memory."""
    from qlora_chat.chat import Chat
    from qlora_chat.engines.open import open_engine
    from qlora_chat.history.memory import MemoryHistory

    opened = open_engine(model, notify, engine)
    try:
        prompt_format = format_of(opened.info, opened.tokenizer)
    except BaseException:
        opened.close()
        raise
    return Chat(opened, prompt_format, history or MemoryHistory(), recorder)


def open_switchable_chat(model: ModelSettings, history: HistoryStore, recorder: LogRecorder | None) -> Chat:
    """Load the model into this process, where a person may replace it by another one later."""
    from qlora_chat.chat import Chat
    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.engines.switch import ModelSwitch, OpenedModel
    from qlora_chat.models import Notify
    from qlora_chat.models.load import fits_beside, load

    def opener(settings: ModelSettings, tell: Notify) -> OpenedModel:
        engine = LocalEngine(partial(load, settings, tell), settings.slots, tell, settings.kv_cache_dtype)
        try:
            return OpenedModel(settings, engine, format_of(engine.info, engine.tokenizer))
        except BaseException:
            engine.close()
            raise

    switch = ModelSwitch(model, opener, fits_beside, notify)
    return Chat(switch, switch.prompt_format, history, recorder)


def format_of(info: ModelInfo, tokenizer: Any) -> ChatFormat:
    """The model's prompt format, opened, after a line that says what it is and why. TemplateError if it cannot be used."""
    from qlora_chat.chat_templates.known import open_format
    from qlora_chat.prompt import find_prompt_format

    if info.format is None:
        return find_prompt_format(info.prompt_format)
    opened = open_format(info.format, tokenizer)
    for line in (info.format.line, *opened.notices):
        notify(line)
    return opened


class Persistence:
    """History and log, opened before the model is loaded; closing it sends due records for up to `patience` seconds."""

    def __init__(self, history: HistorySettings, log: LogSettings, patience: float = 30.0) -> None:
        from qlora_chat.history.open import open_history

        self.recorder: LogRecorder | None = None
        self._patience = patience
        self._sender: LogSender | None = None
        self._opened = open_history(history, log)
        if outbox := self._opened.outbox:
            from qlora_chat.delivery.recorder import LogRecorder
            from qlora_chat.delivery.redaction import load_redaction
            from qlora_chat.delivery.sender import LogSender

            self.recorder = LogRecorder(log.version, load_redaction(log.redact), outbox.count_dropped)
            self._sender = LogSender(outbox, log, notify)
        self.store = self._opened.store
        if history.url is None and self.recorder is None:  # a log's outbox is beside the store, and would not move with it
            self.store = _savable(self.store, history)
        self.durable, self.ended_sessions = self._opened.durable, self._opened.ended_sessions
        self._retention = None
        if history.keep_days:
            from qlora_chat.history.retention import Retention

            self._retention = Retention(self.store, history.keep_days, notify, self._opened.facts)

    @property
    def logging_on(self) -> bool:
        """True if turns are sent to a receiver."""
        return self.recorder is not None

    def outbox_depth(self) -> int:
        """Number of records that wait to be delivered."""
        outbox = self._opened.outbox
        return outbox.counts().waiting if outbox else 0

    def open_chat(self, model: ModelSettings, engine: EngineSettings | None = None) -> Chat:
        """A chat whose turns are saved and sent here."""
        return open_chat(model, engine, self.store, self.recorder)

    def open_served_chat(self, model: ModelSettings, engine: EngineSettings) -> Chat:
        """The same for a server, on whose page the model can be switched where it is in this process."""
        if engine.urls:
            return self.open_chat(model, engine)
        return open_switchable_chat(model, self.store, self.recorder)

    def close(self) -> None:
        """Send what is due, write what is pending."""
        if self._retention:
            self._retention.close()
        if self._sender:
            self._sender.close(self._patience)
        if self.store is not self._opened.store:
            self.store.close()
        self._opened.close()


def _savable(memory: HistoryStore, history: HistorySettings) -> HistoryStore:
    """The store in memory, which a person can have saved to the user's data folder."""
    from qlora_chat.history.open import open_history
    from qlora_chat.history.savable import SavableHistory

    def open_file(path: Path) -> HistoryStore:
        return open_history(replace(history, url=f"sqlite:///{path}"), LogSettings()).store

    return cast("HistoryStore", SavableHistory(memory, data_file(), open_file))


def notify(line: str) -> None:
    """Print a line for the person who started the program."""
    print(plain(line, allowed="\n\t"), file=sys.stderr, flush=True)
