"""A run's state on disk: each checkpoint is complete or absent, hashed, and free of pickle.

Scope: numbered folders of tensors and plain values, the newest two kept. A folder is written under a temporary name, synced
and renamed; one whose hashes do not match is skipped with a notice. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qlora_chat.models import Notify
from qlora_chat.models.cache import new_folder, sha256
from qlora_chat.training import TrainError

MAX_CHECKPOINTS = 2
STATE, TENSORS = "state.json", "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one checkpoint."""

    step: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    root: Path
    notify: Notify

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write a checkpoint, then delete all but the newest two. TrainError if the disk refuses it."""
        try:
            with new_folder(self.root / f"step-{step:08d}") as folder:
                save_file(dict(tensors), folder / TENSORS)
                body = {"step": step, "values": dict(values), "sha256": sha256(folder / TENSORS)}
                (folder / STATE).write_text(json.dumps({**body, "self": _digest(body)}, indent=1) + "\n")
        except (OSError, SafetensorError) as problem:
            raise TrainError(
                f"the checkpoint of step {step} could not be written to {self.root} ({problem}); {self.newest_in_words()}. "
                "Make room, then continue with --resume"
            ) from problem
        for old in self._folders()[MAX_CHECKPOINTS:]:
            shutil.rmtree(old, ignore_errors=True)
        for unfinished in self.root.glob(".step-*"):  # left by a killed process; only one process writes a run
            shutil.rmtree(unfinished, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None; damaged ones are skipped with a notice."""
        return next((checkpoint for _, checkpoint in self._intact(self.notify)), None)

    def newest_in_words(self) -> str:
        """Return that the newest intact checkpoint is intact, or that there is none."""
        folder = next((folder for folder, _ in self._intact(lambda _: None)), None)
        return f"{folder} is intact" if folder else "there is no checkpoint yet"

    def _intact(self, notify: Notify) -> Iterator[tuple[Path, Checkpoint]]:
        for folder in self._folders():
            try:
                yield folder, _read(folder)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
                notify(f"the checkpoint {folder} is damaged ({problem}) and is skipped")

    def _folders(self) -> list[Path]:
        return sorted((each for each in self.root.glob("step-*") if each.is_dir()), reverse=True)


def _read(folder: Path) -> Checkpoint:
    stored = json.loads((folder / STATE).read_text())
    digest = stored.pop("self")
    if digest != _digest(stored):
        raise ValueError(f"{STATE} does not match its checksum")
    if stored["sha256"] != sha256(folder / TENSORS):
        raise ValueError(f"{TENSORS} does not match its checksum")
    with safe_open(folder / TENSORS, framework="pt") as file:  # type: ignore[no-untyped-call]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return Checkpoint(int(stored["step"]), tensors)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
