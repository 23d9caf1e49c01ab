"""Belief in files that others may have written: where a link leads, how large a file is, who can change it.

Scope: paths, sizes, owners and modes. A folder is read only as far as it holds its own files; a name stands for contents only
in the store of the Hub's client, and a cache is read only where no other user can write. Knows nothing of what files mean.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from qlora_chat.models import ModelError

SMALL_FILE = 32 * 1024**2
"""Bytes; configs and indexes are far smaller."""
TOKENIZER_FILE = 64 * 1024**2
"""Bytes; the largest vocabularies in use take 40 MB."""


def own_file(path: Path, most: int | None = None) -> Path:
    """The path of a file that belongs to its folder. ModelError for a link out of it, or for more than `most` bytes.

    A folder of the Hub's store holds links to the blobs of its repository, which are part of it.
    """
    folder, target = path.parent.resolve(), path.resolve()
    homes = [folder]
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        homes.append(folder.parent.parent / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        raise ModelError(f"{path} is a link to {target}, outside of its folder, and is not followed; put the file itself there")
    size = path.stat().st_size
    if most is not None and size > most:
        raise ModelError(f"{path} is {size:,} bytes, but a file of this kind has at most {most:,}; fetch it again")
    return path


def weight_files(folder: Path) -> list[Path]:
    """The folder's own *.safetensors in order. ModelError for a link out of it."""
    return [own_file(path) for path in sorted(folder.glob("*.safetensors"))]


def hub_digest(path: Path, store: Path | None) -> str | None:
    """The sha256 by which the Hub's client names a large file; None outside its store, or where others can write to it."""
    if store is None or not path.is_symlink():
        return None
    blob = path.resolve()
    repository = blob.parent.parent
    if blob.parent.name != "blobs" or repository.parent != store.resolve() or not repository.name.startswith("models--"):
        return None
    if len(blob.name) != 64 or not set(blob.name) <= set("0123456789abcdef"):
        return None
    return blob.name if all(is_private(each) for each in (store, repository, blob.parent, blob)) else None


def check_private(path: Path) -> None:
    """Check a folder or file of the cache. OSError if it is missing, or if another user owns it or can write to it."""
    status = path.stat()
    if path.is_file() and path.is_symlink():
        reason = "it is a link"
    elif status.st_uid not in (0, os.geteuid()):
        reason = f"it belongs to user {status.st_uid}"
    elif status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)):
        reason = "other users can write to it"
    else:
        return
    advice = "so it is not trusted: chmod -R go-w, or name another folder"
    raise PermissionError(errno.EPERM, f"{reason}, {advice}", str(path))


def is_private(path: Path) -> bool:
    """True if the path exists and no other user can write to it."""
    try:
        check_private(path)
    except OSError:
        return False
    return True


def _is_own_group(gid: int) -> bool:
    """True for the group that a system gives each user for themselves, whose folders are writable by it."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
