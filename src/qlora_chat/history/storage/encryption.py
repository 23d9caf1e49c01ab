"""Encryption at rest: text and bytes sealed with AES-256-GCM under a key of the operator, or left as they are.

Scope: two functions each way, and a check that a database is always written with the same key.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from qlora_chat.history import HistoryError
from qlora_chat.history.storage.schema import FACTS

if TYPE_CHECKING:
    from qlora_chat.history.storage.database import Database

KEY_BYTES = 32
NONCE_BYTES = 12
CHECK = "qlora-chat history"
"""Sealed and kept in the database, to tell a wrong key before anything is read or written."""


class Cipher(Protocol):
    """How what people said is written into files."""

    @property
    def sealed(self) -> bool:
        """Whether files are unreadable without the key; then no index can help a search."""
        ...

    def close(self, data: bytes) -> bytes:
        """As it is written."""
        ...

    def open(self, data: bytes) -> bytes:
        """As it was given. HistoryError where it was altered or the key is another."""
        ...


class PlainCipher:
    """Everything as it is."""

    sealed = False

    def close(self, data: bytes) -> bytes:
        """The same."""
        return data

    def open(self, data: bytes) -> bytes:
        """The same."""
        return data


class AesCipher:
    """AES-256-GCM, a fresh nonce in front of each value."""

    sealed = True

    def __init__(self, key: str) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise HistoryError(
                "QLORA_CHAT_HISTORY_KEY needs the cryptography package: pip install 'qlora-chat[encryption]'"
            ) from None
        self._cipher = AESGCM(_key_bytes(key))

    def close(self, data: bytes) -> bytes:
        """nonce, then ciphertext and tag."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, None)

    def open(self, data: bytes) -> bytes:
        """HistoryError where it was altered or the key is another."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise HistoryError(
                "an encrypted value cannot be opened: QLORA_CHAT_HISTORY_KEY is another, or it was altered"
            ) from None


def _key_bytes(key: str) -> bytes:
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
    return decoded


def cipher_for(key: str | None) -> Cipher:
    """Encryption under a key, or none."""
    return AesCipher(key) if key else PlainCipher()


def encrypt_text(seal: Cipher, text: str) -> str:
    """Text for a text column."""
    return base64.b64encode(seal.close(text.encode())).decode() if seal.sealed else text


def decrypt_text(seal: Cipher, text: str) -> str:
    """Text as it was given."""
    return seal.open(base64.b64decode(text)).decode() if seal.sealed else text


def check_cipher(database: Database, seal: Cipher) -> None:
    """Hold a database to one way of writing from its first day. HistoryError for another key, a missing or a new one."""
    with database.write() as connection:
        make = sqlite.insert if database.sqlite else postgresql.insert
        first = make(FACTS).values(name="seal", value=encrypt_text(seal, CHECK) if seal.sealed else "none")
        connection.execute(first.on_conflict_do_nothing())  # another process may open the same new database just now
        kept = connection.execute(select(FACTS.c.value).where(FACTS.c.name == "seal")).scalar_one()
    check_kept_seal(kept, seal)


def check_kept_seal(kept: str, seal: Cipher) -> None:
    """The same, against what a database says of itself."""
    if kept == "none" and seal.sealed:
        raise HistoryError(
            "this history was begun without QLORA_CHAT_HISTORY_KEY, and its old text would stay readable: "
            "export it, and import it into a new one"
        )
    if kept != "none" and not seal.sealed:
        raise HistoryError("this history is encrypted: set QLORA_CHAT_HISTORY_KEY to its key")
    if kept != "none" and decrypt_text(seal, kept) != CHECK:
        raise HistoryError("QLORA_CHAT_HISTORY_KEY is not the key of this history")
