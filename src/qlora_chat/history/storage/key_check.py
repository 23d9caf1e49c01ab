"""Check that a database is opened with its own key, also while the key is being changed and by programs that run meanwhile.

Scope: the check value in `facts`: a known text, encrypted with the history's key; two of them, with a space between, from the
first opening with an old and a new key until every value has the new one. Knows no other table.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from qlora_chat.history import HistoryError, HistoryUnavailable
from qlora_chat.history.storage.database import Database
from qlora_chat.history.storage.encryption import Binding, Cipher
from qlora_chat.history.storage.schema import FACTS

CHECK_FACT = "seal"
"""Name of the row in `facts` that holds the encrypted CHECK_TEXT, or UNENCRYPTED."""
CHECK_TEXT = "qlora-chat history"
UNENCRYPTED = "none"
_BINDING = Binding("facts", "value", row_id=CHECK_FACT)
_STORED = select(FACTS.c.value).where(FACTS.c.name == CHECK_FACT)


def check_cipher(database: Database, cipher: Cipher) -> None:
    """Store the check value of a new database, and compare that of an existing one. HistoryError if the key is not its own.

    With an old key that is the database's, the new one becomes its second. From then on, every transaction that writes
    is refused if the key has been changed by another program.
    """
    with database.write() as connection:
        value = cipher.encrypt_text(CHECK_TEXT, _BINDING) if cipher.encrypts else UNENCRYPTED
        first = database.insert(FACTS).values(name=CHECK_FACT, value=value)
        connection.execute(first.on_conflict_do_nothing())  # another process may open the same new database
        stored = connection.execute(_STORED.with_for_update()).scalar_one()
        check_key(stored, cipher)
        if cipher.encrypts and not _has_present_key(stored, cipher):
            stored = f"{stored} {value}"
            _store(connection, stored)
    if cipher.encrypts:
        database.before_writing(_KeyGuard(stored, cipher))


def check_key(stored: str, cipher: Cipher) -> None:
    """Compare a database's check value. HistoryError for another key, a missing one, or one for an unencrypted database."""
    encrypted = stored != UNENCRYPTED
    if cipher.encrypts and not encrypted:
        raise HistoryError(
            "this history was begun without QLORA_CHAT_HISTORY_KEY, and its old text would stay readable: "
            "export it, and import it into a new one"
        )
    if encrypted and not cipher.encrypts:
        raise HistoryError("this history is encrypted: set QLORA_CHAT_HISTORY_KEY to its key")
    values = stored.split(" ")
    if not encrypted or all(_is_check_text(each, cipher) for each in values):
        return
    if len(values) > 1:
        raise HistoryError(
            "the key of this history is being changed: set QLORA_CHAT_HISTORY_KEY to the new key and "
            "QLORA_CHAT_HISTORY_OLD_KEY to the old one until `qlora-chat history rekey` has finished"
        )
    raise HistoryError("QLORA_CHAT_HISTORY_KEY is not the key of this history")


def finish_key_change(database: Database, cipher: Cipher) -> None:
    """Make the present key the only one; call it when no value has another."""
    with database.write() as connection:
        _store(connection, cipher.encrypt_text(CHECK_TEXT, _BINDING))


class _KeyGuard:
    """Refuses to write in a database whose key another program has changed since it was opened."""

    def __init__(self, stored: str, cipher: Cipher) -> None:
        self._stored, self._cipher = stored, cipher

    def __call__(self, connection: Connection) -> None:
        """HistoryUnavailable if values with our key would not be readable. The check value stays until the transaction ends."""
        stored = connection.execute(_STORED.with_for_update(read=True)).scalar() or ""
        if stored == self._stored:
            return
        try:
            check_key(stored, self._cipher)
            if not _has_present_key(stored, self._cipher):
                raise HistoryError("QLORA_CHAT_HISTORY_KEY is its old one")
        except HistoryError as problem:
            raise HistoryUnavailable(f"{problem}; nothing more is written until this program is started again") from None
        self._stored = stored


def _is_check_text(value: str, cipher: Cipher) -> bool:
    try:
        return cipher.decrypt_text(value, _BINDING) == CHECK_TEXT
    except HistoryError:
        return False


def _has_present_key(stored: str, cipher: Cipher) -> bool:
    """True if one of the check values was encrypted with the cipher's present key."""
    return any(_is_check_text(value, cipher.without_old_key()) for value in stored.split(" "))


def _store(connection: Connection, value: str) -> None:
    connection.execute(update(FACTS).where(FACTS.c.name == CHECK_FACT).values(value=value))
