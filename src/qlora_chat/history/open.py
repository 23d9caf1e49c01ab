"""Opens the history that a URL names: in memory, a database, plain files, or a store that a package provides.

Scope: which module is imported, and which outbox a store gets. A package provides a store as an entry point in the group
`qlora_chat.history`, named after the URL's scheme: a callable (url, queue) -> HistoryStore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_chat.history import HistoryError, HistoryStore, HistoryUnavailable, Queue
from qlora_chat.history.retention_clock import Facts
from qlora_chat.private_files import replace_file
from qlora_chat.settings import HistorySettings, LogSettings, outbox_file

if TYPE_CHECKING:
    from qlora_chat.history.outbox.queue import Outbox
    from qlora_chat.history.sql.rekey import Rekeyed
    from qlora_chat.history.sql.shared_state import EndedSessionsTable
    from qlora_chat.history.sql.store import SqlHistory

ENTRY_POINTS = "qlora_chat.history"
DATABASES = ("sqlite", "postgresql")


class FactFiles:
    """Facts as small files in the folder of a history of plain files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> str | None:
        """The value, or None."""
        try:
            return self._file(name).read_text()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as problem:
            raise HistoryUnavailable(f"{self._file(name)} cannot be read ({problem})") from None

    def write(self, name: str, value: str) -> None:
        """Store the value; the file has the old value or the new one."""
        try:
            replace_file(self._file(name), [value])
        except OSError as problem:
            raise HistoryUnavailable(f"{self._file(name)} cannot be written ({problem.strerror})") from None

    def _file(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '-')}.fact"


@dataclass(frozen=True)
class OpenHistory:
    """A store and its outbox."""

    store: HistoryStore
    outbox: Outbox | None
    """None if nothing is delivered."""
    durable: bool
    """True if conversations survive the process."""
    ended_sessions: EndedSessionsTable | None = None
    """Record of log-outs; None if the history is no database."""
    facts: Facts | None = None
    """Values that belong to the history as a whole; None if it is in memory, or another package's."""

    def close(self) -> None:
        """Write pending changes and close files and connections."""
        self.store.close()
        if self.outbox:
            self.outbox.close()


def open_history(settings: HistorySettings, log: LogSettings) -> OpenHistory:
    """Open the history of --history. HistoryError if it cannot be opened. Memory without a log creates no file."""
    scheme = _scheme(settings.url)
    if scheme in DATABASES:
        from qlora_chat.history.sql.shared_state import EndedSessionsTable, FactsTable

        store = _open_database(settings, log)
        outbox = store.outbox if log.url else None
        sessions, facts = EndedSessionsTable(store.database), FactsTable(store.database)
        return OpenHistory(store, outbox, durable=True, ended_sessions=sessions, facts=facts)
    if settings.url and settings.key:
        raise _not_encrypted(scheme)
    make_store = _store_factory(scheme, settings.url)
    outbox = _open_outbox_file(settings, log) if log.url else None
    store = make_store(outbox)
    facts = FactFiles(_jsonl_folder(settings.url)) if settings.url and scheme == "jsonl" else None
    return OpenHistory(store, outbox, durable=settings.url is not None, facts=facts)


@contextmanager
def opened_outbox(settings: HistorySettings, log: LogSettings) -> Iterator[Outbox]:
    """Outbox of a history, with nothing that sends from it. HistoryError if it cannot be opened."""
    if _scheme(settings.url) in DATABASES:
        with closing(_open_database(settings, log)) as store:
            yield store.outbox
    else:
        with closing(_open_outbox_file(settings, log)) as outbox:
            yield outbox


def rekey_history(settings: HistorySettings, log: LogSettings, notify: Callable[[str], None]) -> Rekeyed:
    """Change the key of a database, or of the outbox's own file if the history is none, from `old_key` to `key`.

    HistoryError if one of the two is missing, or is not a key of that history.
    """
    from qlora_chat.history.sql.rekey import rekey
    from qlora_chat.history.storage.encryption import Cipher

    if not settings.key or not settings.old_key or settings.key == settings.old_key:
        raise HistoryError(
            "to change the key, set QLORA_CHAT_HISTORY_KEY to the new key and QLORA_CHAT_HISTORY_OLD_KEY to the present one"
        )
    cipher = Cipher(settings.key, settings.old_key)
    if _scheme(settings.url) in DATABASES:
        with closing(_open_database(settings, log)) as store:
            return rekey(store.database, cipher, notify)
    if settings.url:
        raise _not_encrypted(_scheme(settings.url))
    with closing(_open_outbox_file(settings, log)) as outbox:
        return rekey(outbox.database, cipher, notify, only_outbox=True)


def history_path(url: str) -> Path | None:
    """File or folder of a history URL; None for a database server or a store of another package."""
    scheme = _scheme(url)
    if scheme == "jsonl":
        return _jsonl_folder(url)
    if scheme != "sqlite":
        return None
    from qlora_chat.history.storage.database import sqlite_file

    return sqlite_file(url)


def _not_encrypted(scheme: str) -> HistoryError:
    return HistoryError(
        f"{scheme}: stores plain files; unset QLORA_CHAT_HISTORY_KEY, or use sqlite:///FILE, which is encrypted with it"
    )


def _scheme(url: str | None) -> str:
    return (url or "").partition(":")[0].partition("+")[0]


def _jsonl_folder(url: str) -> Path:
    """Folder of jsonl:FOLDER, a leading ~ replaced. HistoryError if it names none."""
    name = url.partition(":")[2].removeprefix("//")
    if not name.strip():
        raise HistoryError("the history jsonl: names no folder; write jsonl:FOLDER, for example jsonl:chats")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise HistoryError(f"the history's URL names {name}, but no home folder of that name is known") from None


def _open_database(settings: HistorySettings, log: LogSettings) -> SqlHistory:
    from qlora_chat.history.outbox.queue import Outbox
    from qlora_chat.history.sql.store import SqlHistory
    from qlora_chat.history.storage.database import open_database
    from qlora_chat.history.storage.encryption import Cipher
    from qlora_chat.history.storage.key_check import check_cipher

    cipher = Cipher(settings.key, settings.old_key)
    database = open_database(settings.url or "", settings.password)
    try:
        check_cipher(database, cipher)
        outbox = Outbox(database, cipher, log.cap_bytes, log.url)
        if log.url:
            database.ensure_reserve()  # now: the disk may be full before the sender's first claim
        return SqlHistory(database, cipher, outbox)
    except BaseException:
        database.close()
        raise


def _open_outbox_file(settings: HistorySettings, log: LogSettings) -> Outbox:
    from qlora_chat.history.outbox.recovery import open_outbox_file
    from qlora_chat.history.storage.encryption import Cipher

    return open_outbox_file(outbox_file(log), Cipher(settings.key, settings.old_key), log.cap_bytes, log.url)


def _store_factory(scheme: str, url: str | None) -> Callable[[Queue | None], HistoryStore]:
    """Constructor of a store without a database, which takes the outbox. HistoryError for an unknown scheme."""
    if url is None:
        from qlora_chat.history.memory import MemoryHistory

        return lambda queue: MemoryHistory(queue=queue)
    if scheme == "jsonl":
        from qlora_chat.history.jsonl import JsonlHistory

        return lambda queue: JsonlHistory(_jsonl_folder(url), queue)
    provided = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    if scheme not in provided:
        others = "".join(f", {name}:..." for name in sorted(provided))
        raise HistoryError(
            f"{scheme!r} is no kind of history; known: sqlite:///FILE, postgresql://USER@HOST/DATABASE, jsonl:FOLDER{others}"
        )
    open_store = provided[scheme].load()
    return lambda queue: open_store(url, queue)
