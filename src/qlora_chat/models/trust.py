"""Belief in files that others may have written: where a link leads, how large a file is, who can change it, what it asks for.

Scope: paths, sizes, owners and modes, and JSON objects. A folder is read only as far as it holds its own files; a name stands
for contents only in the store of the Hub's client, and a cache is read only where no other user can write. Knows nothing of
what files mean.
"""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} for a missing file.

    ModelError for anything else, for a link out of its folder, and for a request to run code (auto_map).
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(own_file(path, SMALL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelError(f"{path} cannot be read as JSON ({problem}); fetch it again") from problem
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, but must hold a JSON object")
    if "auto_map" in value:
        raise ModelError(f"{path} asks to run code from its own repository (auto_map), which is never done; use another model")
    return value


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
    """Check a folder or file of the cache. OSError if it is missing, if another user owns it or can write to it, or if another
    user could put something else in its place or in that of a folder above it."""
    status = path.stat()
    if path.is_file() and path.is_symlink():
        raise _untrusted(path, "it is a link")
    if status.st_uid not in (0, os.geteuid()):
        raise _untrusted(path, f"it belongs to user {status.st_uid}")
    if _is_writable_by_others(status):
        raise _untrusted(path, "other users can write to it")
    for folder in _folders_above(path):
        owner, above = folder.lstat().st_uid, folder.stat()
        if owner not in (0, os.geteuid(), _unmapped_user()):
            raise _untrusted(folder, f"it belongs to user {owner}, who can replace what is in it")
        if _is_writable_by_others(above) and not above.st_mode & stat.S_ISVTX:  # sticky, as /tmp: nobody moves what others own
            raise _untrusted(folder, "other users can write to it and replace what is in it")


def _untrusted(path: Path, reason: str) -> PermissionError:
    advice = "so it is not trusted: chmod -R go-w, or name another folder"
    return PermissionError(errno.EPERM, f"{reason}, {advice}", str(path))


def _is_writable_by_others(status: os.stat_result) -> bool:
    return bool(status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)))


def _folders_above(path: Path) -> Iterator[Path]:
    """Every folder, and every link to one, that the path leads through."""
    pending, seen = [path.absolute()], set[Path]()
    while pending:
        for each in pending.pop().parents:
            if each in seen:
                continue
            seen.add(each)
            yield each
            if each.is_symlink():
                pending.append(each.parent / os.readlink(each) / "-")


@cache
def _unmapped_user() -> int | None:
    """The user as whom root's folders appear in a container that knows no root, as on clusters; None elsewhere."""
    try:
        first, _, count = Path("/proc/self/uid_map").read_text().split()[:3]
        if first == "0" and int(count) == 2**32 - 1:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return None


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
