"""From an address to a store: in memory, a database, plain files, or one that a developer has installed.

Scope: which module is imported, and where the outbox lives. A store of one's own is a Python entry point in the group
`qlora_chat.history`, named by the scheme of its address; it is called with (url, queue) and returns a HistoryStore.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_chat.history import HistoryError, HistoryStore, Queue
from qlora_chat.settings import HistorySettings, LogSettings, outbox_file

if TYPE_CHECKING:
    from qlora_chat.history.outbox.queue import Outbox

ENTRY_POINTS = "qlora_chat.history"


@dataclass(frozen=True)
class OpenHistory:
    """A store and the outbox beside or inside it."""

    store: HistoryStore
    outbox: Outbox | None
    """None where nothing is delivered."""
    durable: bool
    """Whether conversations outlive the program."""

    def close(self) -> None:
        """Write what is pending and let go of files and connections."""
        self.store.close()
        if self.outbox:
            self.outbox.close()


def open_history(settings: HistorySettings, log: LogSettings) -> OpenHistory:
    """Open what --history names. HistoryError for what cannot be opened. Memory and no log: no file appears."""
    scheme = (settings.url or "").partition(":")[0].partition("+")[0]
    if scheme in ("sqlite", "postgresql"):
        return _database(settings, log)
    outbox = _own_outbox(settings, log) if log.url else None
    if settings.url is None:
        from qlora_chat.history.memory import MemoryHistory

        return OpenHistory(MemoryHistory(queue=outbox), outbox, durable=False)
    if settings.key:
        raise HistoryError(
            f"{scheme}: keeps plain files; unset QLORA_CHAT_HISTORY_KEY, or use sqlite:///FILE, which it encrypts"
        )
    if scheme == "jsonl":
        from qlora_chat.history.jsonl import JsonlHistory

        return OpenHistory(JsonlHistory(Path(settings.url.partition(":")[2]), outbox), outbox, durable=True)
    return OpenHistory(_installed(scheme, settings.url, outbox), outbox, durable=True)


def file_of(url: str) -> Path | None:
    """The file or folder that an address names; None for a server, or a kind of one's own."""
    scheme, _, rest = url.partition(":")
    if scheme == "jsonl":
        return Path(rest)
    if scheme.partition("+")[0] != "sqlite":
        return None
    from qlora_chat.history.storage.database import sqlite_file

    return sqlite_file(url)


def _database(settings: HistorySettings, log: LogSettings) -> OpenHistory:
    from qlora_chat.history.outbox.queue import Outbox
    from qlora_chat.history.sql.store import SqlHistory
    from qlora_chat.history.storage.database import open_database
    from qlora_chat.history.storage.encryption import check_cipher, cipher_for

    seal = cipher_for(settings.key)
    database = open_database(settings.url or "", settings.password)
    try:
        check_cipher(database, seal)
        outbox = Outbox(database, seal, log.cap_bytes)
        if log.url:
            database.keep_reserve()  # now: the disk may be full before a sender first looks
        return OpenHistory(SqlHistory(database, seal, outbox), outbox if log.url else None, durable=True)
    except BaseException:
        database.close()
        raise


def _own_outbox(settings: HistorySettings, log: LogSettings) -> Outbox:
    from qlora_chat.history.outbox.recovery import open_outbox_file
    from qlora_chat.history.storage.encryption import cipher_for

    return open_outbox_file(outbox_file(log), cipher_for(settings.key), log.cap_bytes)


def _installed(scheme: str, url: str, queue: Queue | None) -> HistoryStore:
    found = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    if scheme not in found:
        others = "".join(f", {name}:..." for name in sorted(found))
        raise HistoryError(
            f"{scheme!r} is no kind of history; known: sqlite:///FILE, postgresql://USER@HOST/DATABASE, jsonl:FOLDER{others}"
        )
    return found[scheme].load()(url, queue)
