"""Encryption at rest: text and bytes under AES-256-GCM with the operator's key, or unchanged.

Scope: the cipher, and what a value is bound to. key_check.py has a database opened with its own key only.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from qlora_chat.history import HistoryError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12


class Binding(NamedTuple):
    """Column and row that an encrypted value belongs to. It is authenticated with the value, so that a moved one is refused."""

    table: str
    column: str
    conversation_id: str = ""
    row_id: str = ""
    """Of a turn, or of what else has an id before its row is written."""

    @property
    def associated_data(self) -> bytes:
        """The same bytes for the same binding only."""
        return json.dumps(self).encode()


class Cipher:
    """AES-256-GCM with a random nonce for each value; without a key, no encryption. HistoryError for an invalid key.

    Values are encrypted with `key`. While a history's key is being changed, `old_key` decrypts those that still have it.
    """

    def __init__(self, key: str | None, old_key: str | None = None) -> None:
        self._aes = _aes(key, "QLORA_CHAT_HISTORY_KEY") if key else None
        old = _aes(old_key, "QLORA_CHAT_HISTORY_OLD_KEY") if old_key else None
        self._readers = [each for each in (self._aes, old) if each]

    @property
    def encrypts(self) -> bool:
        """True if files are unreadable without the key; then there is no search index."""
        return self._aes is not None

    def without_old_key(self) -> Cipher:
        """The cipher as it will be when no value has the old key."""
        other = Cipher(None)
        other._aes, other._readers = self._aes, self._readers[:1]
        return other

    def encrypt(self, data: bytes, binding: Binding) -> bytes:
        """Nonce, then ciphertext and tag; the same bytes without a key."""
        if self._aes is None:
            return data
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, data, binding.associated_data)

    def decrypt(self, data: bytes, binding: Binding) -> bytes:
        """Bytes as they were before encryption. HistoryError for altered or moved ones, and for another key."""
        if self._aes is None:
            return data
        associated = binding.associated_data
        for accepted in (associated, None):  # None: earlier versions bound values to nothing
            for aes in self._readers:
                if (found := _decrypted(aes, data, accepted)) is not None:
                    return found
        of = f" of conversation {binding.conversation_id}" if binding.conversation_id else ""
        raise HistoryError(
            f"an encrypted value ({binding.column} in {binding.table}{of}) cannot be decrypted: QLORA_CHAT_HISTORY_KEY is not "
            "its key, or it was altered, or moved there from elsewhere"
        )

    def renewed(self, data: bytes, binding: Binding) -> bytes | None:
        """The value encrypted anew, with the present key and bound; None if it is so already. HistoryError if unreadable."""
        if self._aes is None or _decrypted(self._aes, data, binding.associated_data) is not None:
            return None
        return self.encrypt(self.decrypt(data, binding), binding)

    def encrypt_text(self, text: str, binding: Binding) -> str:
        """Value of a text column: base64 of the encrypted text, or the text itself."""
        return base64.b64encode(self.encrypt(text.encode(), binding)).decode() if self._aes else text

    def decrypt_text(self, text: str, binding: Binding) -> str:
        """Text of a text column. HistoryError for an altered or moved value, and for another key."""
        return self.decrypt(_from_base64(text), binding).decode() if self._aes else text

    def renewed_text(self, text: str, binding: Binding) -> str | None:
        """The value of a text column as `renewed` has it."""
        data = self.renewed(_from_base64(text), binding) if self._aes else None
        return None if data is None else base64.b64encode(data).decode()


def _decrypted(aes: AESGCM, data: bytes, associated: bytes | None) -> bytes | None:
    """Bytes as they were before encryption; None for another key, other associated data, or an altered value."""
    from cryptography.exceptions import InvalidTag

    try:
        return aes.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        return None


def _from_base64(text: str) -> bytes:
    """Bytes of a text column; none, which no key decrypts, if it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _aes(key: str, name: str) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise HistoryError(f"{name} needs the cryptography package: pip install 'qlora-chat[encryption]'") from None
    problem = HistoryError(
        f"{name} must be 32 random bytes in base64; make one with: "
        "python -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"
    )
    try:
        decoded = base64.b64decode(key.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        raise problem from None
    if len(decoded) != KEY_BYTES:
        raise problem
    return AESGCM(decoded)
