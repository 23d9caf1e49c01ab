"""Folders that this program writes once and reads at every later start: merged weights, converted adapters, tokenizers.

Scope: keys, records, and writing a folder so that it is either complete or absent. Of the contents it knows names and
sizes alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from qlora_chat import __version__
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.folders import RECORD
from qlora_chat.models.trust import check_private, read_json
from qlora_chat.models.weights.checkpoint import WeightFiles, read_weight_files

FORMAT = 1
"""Part of every key: after a change, entries of older versions are not used."""

EntryKind = Literal["merged", "adapters", "tokenizers", "gguf"]
Record = dict[str, Any]


class CacheUnusable(ModelError):
    """The cache folder cannot be written, or not to the end; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; set QLORA_CHAT_CACHE to another folder")


@dataclass(frozen=True)
class CacheEntry:
    """One complete folder in the cache."""

    folder: Path
    record: Record
    weights: WeightFiles | None = None
    """Index and headers, read when the entry was found."""


@dataclass(frozen=True)
class Cache:
    """A folder with one folder per kind and key."""

    root: Path
    notify: Notify

    def find(self, kind: EntryKind, key: str) -> CacheEntry | None:
        """The entry, or None; a damaged one is reported, and the caller writes it again."""
        folder = self.root / kind / key
        if not folder.is_dir() or not self._is_trusted(folder):
            return None
        entry = _complete_entry(folder)
        if entry is None:
            self.notify(f"what was cached in {folder} is damaged or incomplete; it is made again")
        return entry

    def entries(self, kind: EntryKind) -> list[CacheEntry]:
        """Every complete entry, newest first."""
        root = self.root / kind
        folders = [each for each in root.iterdir() if each.is_dir() and each.name[0] != "."] if root.is_dir() else []
        folders = [folder for folder in folders if self._is_trusted(folder)]
        entries = [entry for folder in folders if (entry := _complete_entry(folder))]
        return sorted(entries, key=lambda entry: str(entry.record.get("made")), reverse=True)

    def write(self, kind: EntryKind, key: str, fill: Callable[[Path], Record], size: int = 0) -> CacheEntry:
        """Add the folder that `fill` writes, with the record that it returns; the entry appears complete or not at all.

        CacheUnusable if it cannot be written, if others can write to the cache, or if it has fewer than `size` bytes free.
        """
        target = self.root / kind / key
        try:
            self._make(kind)
            if (free := shutil.disk_usage(self.root).free) < size:
                raise CacheUnusable(f"{self.root} has {free / 1e9:.1f} GB free and {size / 1e9:.1f} GB are needed")
            with new_folder(target, reuse=lambda folder: self._is_trusted(folder) and bool(_complete_entry(folder))) as folder:
                record = {"format": FORMAT, "made": datetime.now(UTC).isoformat(timespec="seconds"), **fill(folder)}
                files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != RECORD}
                write_record(folder, {**record, "files": files})
                for path in (*folder.iterdir(), folder):
                    path.chmod(0o700 if path.is_dir() else 0o600)
        except (OSError, SafetensorError) as problem:
            raise CacheUnusable(f"{target.parent} cannot be written ({problem})") from problem
        return CacheEntry(target, record)

    def _make(self, kind: EntryKind) -> None:
        """Create the folder of a kind for this user alone. OSError if that fails, or if others can write to it."""
        for folder in (self.root, self.root / kind):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(folder)

    def _is_trusted(self, folder: Path) -> bool:
        """True if nobody else could have written an entry; otherwise it is reported, and not read."""
        try:
            for path in (self.root, folder.parent, folder, *folder.iterdir()):
                check_private(path)
        except OSError as problem:
            self.notify(f"what is cached in {folder} is left out: {problem.filename}: {problem.strerror}")
            return False
        return True


def _complete_entry(folder: Path) -> CacheEntry | None:
    """The entry if every file that its record names has its size, and safetensors headers are valid."""
    try:
        record = read_json(folder / RECORD)
        files = record["files"]
        complete = bool(files) and all((folder / name).stat().st_size == size for name, size in files.items())
        weights = read_weight_files(folder) if complete else None
    except (OSError, KeyError, AttributeError, TypeError, ModelError):
        return None
    return CacheEntry(folder, record, weights) if weights else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as Hugging Face does."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the folder's qlora_chat.json: this program's version, and what the folder was made of."""
    write_json(folder / RECORD, {"tool": f"qlora-chat {__version__}", **record})


def check_new_folder(folder: Path) -> None:
    """ModelError for a file, and for a folder with something in it, which nothing here would overwrite."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists already and is not empty; name a new folder")


@contextmanager
def new_folder(target: Path, reuse: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """A temporary folder next to `target` that replaces it, synced to disk, when the block ends without an error.

    A target that `reuse` accepts by then stays: another process wrote the same meanwhile, and may be reading it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    temporary = target.parent / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        if target.exists():
            if reuse(target):
                return
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `target`. ModelError for a disk that is full, or that cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-work-") as folder:
            yield Path(folder)
    except (OSError, SafetensorError) as problem:
        raise ModelError(f"{target} cannot be written ({problem}); make room, or name another folder") from problem


def _remove_abandoned(target: Path) -> None:
    """Delete temporary folders of processes that were killed while writing this target."""
    import psutil

    for each in target.parent.glob(f".{target.name}.*"):
        owner = each.name.rpartition(".")[2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(each, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_of(name: str, parts: Mapping[str, Any]) -> str:
    """A folder name: readable, and different wherever `parts` differ."""
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".-")[:60]
    digest = hashlib.sha256(json.dumps([FORMAT, parts], sort_keys=True).encode()).hexdigest()
    return f"{readable}-{digest[:16]}"


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
