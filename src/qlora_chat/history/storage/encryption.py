"""Encryption at rest: text and bytes under AES-256-GCM with the operator's key, or unchanged.

Scope: the cipher, and a check that a database is always opened with the same key.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from qlora_chat.history import HistoryError
from qlora_chat.history.storage.schema import FACTS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from qlora_chat.history.storage.database import Database

KEY_BYTES = 32
NONCE_BYTES = 12
CHECK_FACT = "seal"
"""Name of the row in `facts` that holds the encrypted CHECK_TEXT, or UNENCRYPTED."""
CHECK_TEXT = "qlora-chat history"
UNENCRYPTED = "none"


class Cipher:
    """AES-256-GCM with a random nonce for each value; without a key, no encryption. HistoryError for an invalid key."""

    def __init__(self, key: str | None) -> None:
        self._aes = _aes(key) if key else None

    @property
    def encrypts(self) -> bool:
        """True if files are unreadable without the key; then there is no search index."""
        return self._aes is not None

    def encrypt(self, data: bytes) -> bytes:
        """Nonce, then ciphertext and tag; the same bytes without a key."""
        if self._aes is None:
            return data
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, data, None)

    def decrypt(self, data: bytes) -> bytes:
        """Bytes as they were before encryption. HistoryError for altered bytes or another key."""
        if self._aes is None:
            return data
        from cryptography.exceptions import InvalidTag

        try:
            return self._aes.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise HistoryError(
                "an encrypted value cannot be decrypted: QLORA_CHAT_HISTORY_KEY is not its key, or it was altered"
            ) from None

    def encrypt_text(self, text: str) -> str:
        """Value of a text column: base64 of the encrypted text, or the text itself."""
        return base64.b64encode(self.encrypt(text.encode())).decode() if self._aes else text

    def decrypt_text(self, text: str) -> str:
        """Text of a text column. HistoryError for an altered value or another key."""
        return self.decrypt(base64.b64decode(text)).decode() if self._aes else text


def _aes(key: str) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise HistoryError(
            "QLORA_CHAT_HISTORY_KEY needs the cryptography package: pip install 'qlora-chat[encryption]'"
        ) from None
    problem = HistoryError(
        "QLORA_CHAT_HISTORY_KEY must be 32 random bytes in base64; make one with: "
        "python -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"
    )
    try:
        decoded = base64.b64decode(key.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        raise problem from None
    if len(decoded) != KEY_BYTES:
        raise problem
    return AESGCM(decoded)


def check_cipher(database: Database, cipher: Cipher) -> None:
    """Store the check value of a new database, and compare that of an existing one. HistoryError if the key is not its own."""
    with database.write() as connection:
        insert = sqlite.insert if database.sqlite else postgresql.insert
        value = cipher.encrypt_text(CHECK_TEXT) if cipher.encrypts else UNENCRYPTED
        first = insert(FACTS).values(name=CHECK_FACT, value=value)
        connection.execute(first.on_conflict_do_nothing())  # another process may open the same new database
        stored = connection.execute(select(FACTS.c.value).where(FACTS.c.name == CHECK_FACT)).scalar_one()
    check_key(stored, cipher)


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
    if encrypted and cipher.decrypt_text(stored) != CHECK_TEXT:
        raise HistoryError("QLORA_CHAT_HISTORY_KEY is not the key of this history")
