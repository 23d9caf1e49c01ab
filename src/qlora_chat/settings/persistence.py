"""The history of conversations, and the receiver of finished turns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from qlora_chat.settings.checks import SettingsError, check_authorities, check_header_secret, http_url, is_loopback


@dataclass(frozen=True)
class HistorySettings:
    """The store of conversations; a url of None means memory."""

    url: str | None = None
    """sqlite:///FILE, postgresql://USER@HOST/DATABASE, jsonl:FOLDER, or the scheme of an installed store."""
    password: str | None = field(default=None, repr=False)
    """Of the database server; None leaves it to PGPASSWORD and ~/.pgpass."""
    key: str | None = field(default=None, repr=False)
    """Encryption key: 32 bytes in base64."""
    keep_days: float | None = None
    """Conversations untouched for longer are erased; None: never."""
    old_key: str | None = field(default=None, repr=False)
    """Key that values may still have while the history's key is being changed."""

    def __post_init__(self) -> None:
        if self.url is not None and ":" not in self.url:
            raise SettingsError(
                f"--history or QLORA_CHAT_HISTORY is {self.url!r}, but must be like sqlite:///chats.db, "
                "postgresql://USER@HOST/DATABASE "
                "or jsonl:FOLDER"
            )
        if self.old_key and not self.key:
            raise SettingsError(
                "QLORA_CHAT_HISTORY_OLD_KEY is set, but QLORA_CHAT_HISTORY_KEY, which must be the new key, is not"
            )
        if self.keep_days is not None and not 0 < self.keep_days < math.inf:
            raise SettingsError(f"QLORA_CHAT_HISTORY_DAYS is {self.keep_days!r}, but must be a number of days above 0")


@dataclass(frozen=True)
class LogSettings:
    """The receiver of finished turns; a url of None sends nothing."""

    url: str | None = None
    token: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    secret: str | None = field(default=None, repr=False)
    """Signs id, timestamp and body with HMAC-SHA256."""
    version: int = 1
    """Payload version: 1 is the original demo's, 2 adds to it."""
    redact: str | None = None
    """"standard", or MODULE:FUNCTION that takes a record and returns what may be sent."""
    certificates: Path | None = None
    """A file of authorities to trust instead of the usual ones."""
    outbox: Path | None = None
    """File of the queue if the history is no database; None: in the user's state folder."""
    cap_bytes: int = 50_000_000
    """Limit of the queue on disk; records that do not fit are dropped and counted."""

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise SettingsError(f"LOGGING_VERSION is {self.version!r}, but must be 1 or 2")
        if self.redact not in (None, "standard") and ":" not in str(self.redact):
            raise SettingsError(f"LOGGING_REDACT is {self.redact!r}, but must be standard or MODULE:FUNCTION")
        check_authorities("LOGGING_CA", self.certificates)
        check_header_secret("LOGGING_TOKEN", self.token)
        if not 8_000_000 <= self.cap_bytes <= 10**12:
            raise SettingsError("LOGGING_OUTBOX_MB must be a number from 8 to 1,000,000")
        if self.url is None:
            return
        parts = http_url(self.url, "LOGGING_URL must look like https://host/path")
        if self.token and (parts.username or parts.password):
            raise SettingsError(
                "LOGGING_URL holds a user and a password, and LOGGING_TOKEN is set, but a request carries one of the two: "
                "leave out the other"
            )
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SettingsError(
                f"LOGGING_URL would send conversations to {parts.hostname} unencrypted: use https (http is for loopback only)"
            )
