"""Folders that this program makes once and reads at every later start: merged weights, converted adapters, tokenizers.

Scope: keys, records, and writing a folder so that it is either whole or not there. Knows nothing of what is inside
beyond names and sizes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from qlora_chat import __version__
from qlora_chat.models import ModelError, Notify
from qlora_chat.models.folders import RECORD, read_json
from qlora_chat.models.weights.checkpoint import Checkpoint

FORMAT = 1
"""Part of every key: a change here makes what older versions wrote be made again."""
HASHED_UP_TO = 64 * 1024**2
"""Larger files are told apart by the Hub's own sha256 where the download carries it, else by size and time."""

Kind = Literal["merged", "adapters", "tokenizers"]
Record = dict[str, Any]


class CacheUnusable(Exception):
    """The cache folder cannot be written, or not to the end; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One whole folder in the cache."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Cache:
    """A folder of folders, one a key."""

    root: Path
    notify: Notify

    def find(self, kind: Kind, key: str) -> Entry | None:
        """The entry, or None; one that is damaged is reported and made again by the caller."""
        folder = self.root / kind / key
        if not folder.is_dir():
            return None
        entry = _whole_entry(folder)
        if entry is None:
            self.notify(f"what was cached in {folder} is damaged or incomplete; it is made again")
        return entry

    def entries(self, kind: Kind) -> list[Entry]:
        """Every whole entry, newest first."""
        root = self.root / kind
        folders = [each for each in root.iterdir() if each.is_dir() and each.name[0] != "."] if root.is_dir() else []
        found = [entry for folder in folders if (entry := _whole_entry(folder))]
        return sorted(found, key=lambda entry: str(entry.record.get("made")), reverse=True)

    def check_room(self, kind: Kind, count: int) -> None:
        """CacheUnusable if the folder cannot be made or has less than `count` bytes free."""
        try:
            (self.root / kind).mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.root).free
        except OSError as problem:
            raise CacheUnusable(f"{self.root} cannot be written ({problem.strerror})") from problem
        if free < count:
            raise CacheUnusable(f"{self.root} has {free / 1e9:.1f} GB free and {count / 1e9:.1f} GB are needed")

    def write(self, kind: Kind, key: str, fill: Callable[[Path], Record]) -> Entry:
        """Let `fill` write a folder and return its record; the entry appears whole or not at all."""
        target = self.root / kind / key
        try:
            with new_folder(target, keep=lambda folder: _whole_entry(folder) is not None) as folder:
                record = {"format": FORMAT, "tool": f"qlora-chat {__version__}", "made": _now(), **fill(folder)}
                files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != RECORD}
                (folder / RECORD).write_text(json.dumps({**record, "files": files}, indent=2) + "\n")
        except (OSError, SafetensorError) as problem:
            raise CacheUnusable(f"{target.parent} cannot be written ({problem})") from problem
        return Entry(target, record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _whole_entry(folder: Path) -> Entry | None:
    """The entry if every file that its record names is there, in full, and safetensors headers can be read."""
    try:
        record = read_json(folder / RECORD)
        files = record["files"]
        whole = bool(files) and all((folder / name).stat().st_size == size for name, size in files.items())
        if whole and any(folder.glob("*.safetensors")):
            Checkpoint(folder)
    except (OSError, KeyError, AttributeError, TypeError, ModelError):
        return None
    return Entry(folder, record) if whole else None


@contextmanager
def new_folder(target: Path, keep: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place, synced to disk, when the block ends well.

    A target that `keep` accepts by then stays: another process wrote the same meanwhile, and may be reading it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    temporary = target.parent / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        if target.exists():
            if keep(target):
                return
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Delete what processes that were killed while writing this very folder left behind."""
    import psutil

    for each in target.parent.glob(f".{target.name}.*"):
        owner = each.name.rpartition(".")[2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(each, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- keys ------------------------------------------------------------------------------------------------------------


def fingerprints(folder: Path) -> dict[str, str]:
    """What tells a model folder's contents apart, by file name: "sha256:...", or for big plain files "size:...,time:..."."""
    names = [
        *folder.glob("*.safetensors"),
        *folder.glob("*.json"),
        *folder.glob("adapter_model.bin"),
        folder / "tokenizer.model",
    ]
    return {path.name: _fingerprint(path) for path in sorted(names) if path.is_file() and path.name != RECORD}


def _fingerprint(path: Path, hashed_up_to: int = HASHED_UP_TO) -> str:
    blob = path.resolve().name if path.is_symlink() else ""
    if len(blob) == 64 and set(blob) <= set("0123456789abcdef"):
        return f"sha256:{blob}"  # the Hub's client names large files in its cache by their sha256
    status = path.stat()
    if status.st_size > hashed_up_to:
        return f"size:{status.st_size},time:{status.st_mtime_ns}"
    return f"sha256:{sha256(path)}"


def weights_sha256(folder: Path | None, hashed_up_to: int = HASHED_UP_TO) -> str | None:
    """The hash of a folder's safetensors: of the one file, or over the names and hashes of several. None where one of
    them is bigger than `hashed_up_to` bytes and the Hub's client does not know its hash, or there is none."""
    files = sorted(folder.glob("*.safetensors")) if folder else []
    prints = {path.name: _fingerprint(path, hashed_up_to) for path in files}
    if not prints or not all(each.startswith("sha256:") for each in prints.values()):
        return None
    if len(prints) == 1:
        return next(iter(prints.values())).removeprefix("sha256:")
    return hashlib.sha256(json.dumps(prints).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(name: str, parts: Mapping[str, Any]) -> str:
    """A folder name: readable, and different wherever `parts` differ."""
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".-")[:60]
    digest = hashlib.sha256(json.dumps([FORMAT, parts], sort_keys=True).encode()).hexdigest()
    return f"{readable}-{digest[:16]}"
