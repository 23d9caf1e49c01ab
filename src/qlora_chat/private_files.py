"""Files and folders that only the user who runs the program can read: they hold conversations.

Scope: permissions. Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def private_opener(path: str, flags: int) -> int:
    """Opener for open(): a file it creates gets mode 0600."""
    return os.open(path, flags, 0o600)


def write_new_file(path: Path, texts: Iterable[str]) -> None:
    """Write a new file as `replace_file` does. FileExistsError, or OSError if that fails."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    replace_file(path, texts)


def replace_file(path: Path, texts: Iterable[str]) -> None:
    """Write a file with mode 0600, as a whole or not at all; one that is there is replaced. OSError if that fails.

    The texts go to a file beside it, which gets the name when all of it is on disk.
    """
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        with open(unfinished, "x", encoding="utf-8", errors="replace", opener=private_opener) as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def make_private_folder(folder: Path) -> None:
    """Create a folder, and its missing parents, with mode 0700; existing ones stay unchanged. OSError if that fails."""
    for each in reversed((folder, *folder.parents)):
        each.mkdir(mode=0o700, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Create a file if it is missing, in a private folder, and set its mode to 0600. OSError if it cannot be written.

    SQLite gives its log files the mode of the database file.
    """
    make_private_folder(path.parent)
    with open(path, "ab", opener=private_opener):
        path.chmod(0o600)
