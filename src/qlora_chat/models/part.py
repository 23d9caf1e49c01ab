"""One base or adapter: its name, its folder, and the hashes of its files.

Scope: hashes for cache keys and for the record of which weights answered; each file is hashed at most once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qlora_chat.models import ModelError
from qlora_chat.models.cache import sha256
from qlora_chat.models.folders import RECORD
from qlora_chat.models.trust import hub_digest, own_file, weight_files

HASHED_UP_TO = 64 * 1024**2
"""Bytes. Larger files are told apart by the Hub's own sha256 in the store of its client, else by what no archive can set: the
file's place on this machine and the time of its last change."""


@dataclass(frozen=True)
class ModelPart:
    """A base or an adapter."""

    name: str
    """Hub id, or the folder's own name."""
    folder: Path | None
    """None for a base that is no longer on this machine but whose merge is in the cache."""
    revision: str | None = None
    """Commit of a Hub repository."""
    store: Path | None = None
    """Folder of the Hub's client, if the part was found there: only its names are believed to be hashes."""
    known_digests: dict[Path, str] = field(default_factory=dict, compare=False, repr=False)
    """Hex sha256 by file: what was computed or recorded already."""

    def existing_folder(self) -> Path:
        """The folder. ModelError without one."""
        if self.folder is None:
            raise ModelError(f"{self.name} is no longer on this machine")
        return self.folder

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each file by name: "sha256:...", or for big plain files size, time and place; {} without a folder."""
        if self.folder is None:
            return {}
        patterns = ("*.safetensors", "*.json", "adapter_model.bin", "tokenizer.model")
        paths = sorted(path for pattern in patterns for path in self.folder.glob(pattern))
        return {path.name: self._fingerprint(path, HASHED_UP_TO) for path in paths if path.is_file() and path.name != RECORD}

    def sha256(self, name: str) -> str:
        """Hex digest of one file; the Hub's client names large files in its store by theirs."""
        path = own_file(self.existing_folder() / name)
        return hub_digest(path, self.store) or self.known_digests.get(path) or self.known_digests.setdefault(path, sha256(path))

    def weights_sha256(self, hashed_up_to: int = HASHED_UP_TO) -> str | None:
        """Hash of the safetensors: of the one file, or over the names and hashes of several.

        None without any, and if one is bigger than `hashed_up_to` bytes and its hash is not known from the Hub.
        """
        paths = weight_files(self.folder) if self.folder else []
        fingerprints = {path.name: self._fingerprint(path, hashed_up_to) for path in paths}
        if not fingerprints or not all(each.startswith("sha256:") for each in fingerprints.values()):
            return None
        if len(fingerprints) == 1:
            return next(iter(fingerprints.values())).removeprefix("sha256:")
        return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()

    def _fingerprint(self, path: Path, hashed_up_to: int) -> str:
        if own_file(path).stat().st_size > hashed_up_to and path not in self.known_digests and not hub_digest(path, self.store):
            return _place_and_time(path)
        return f"sha256:{self.sha256(path.name)}"


def file_fingerprint(path: Path, hashed_up_to: int = 2**30) -> str:
    """Fingerprint of a file that the user named: "sha256:...", or size, time and place beyond `hashed_up_to` bytes.

    A quarter of a second for 100 MB, once a start; gigabytes would take longer to hash than to load.
    """
    return f"sha256:{sha256(path)}" if path.stat().st_size <= hashed_up_to else _place_and_time(path)


def _place_and_time(path: Path) -> str:
    status = path.stat()
    return f"size:{status.st_size},time:{status.st_mtime_ns},file:{status.st_dev}-{status.st_ino}-{status.st_ctime_ns}"
