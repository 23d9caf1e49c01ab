"""A run's state on disk: whole or not there, hashed, without pickle.

Scope: numbered folders of tensors and plain values, the newest two kept. A folder is written beside its place, synced
and renamed; one whose hashes do not fit is passed over with a notice. Knows nothing of what is in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qlora_chat.models import Notify
from qlora_chat.models.cache import new_folder, sha256
from qlora_chat.training import TrainError

KEPT = 2
STATE, TENSORS = "state.json", "state.safetensors"


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    root: Path
    notify: Notify

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
        """Write one, then let go of all but the newest two. TrainError if the disk does not take it."""
        target = self.root / f"step-{step:08d}"
        try:
            with new_folder(target) as folder:
                save_file(dict(tensors), folder / TENSORS)
                body = {"step": step, "values": dict(values), "sha256": sha256(folder / TENSORS)}
                (folder / STATE).write_text(json.dumps({**body, "self": _digest(body)}, indent=1) + "\n")
        except (OSError, SafetensorError) as problem:
            raise TrainError(self._not_written(step, problem)) from problem
        for old in self._folders()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        self._remove_unfinished()
        return target

    def newest(self) -> Saved | None:
        """The newest whole one, or None; damaged ones are passed over with a notice."""
        for folder in self._folders():
            try:
                return _read(folder)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
                self.notify(f"the checkpoint {folder} is damaged ({problem}) and is passed over")
        return None

    def _folders(self) -> list[Path]:
        found = self.root.glob("step-*") if self.root.is_dir() else []
        return sorted((each for each in found if each.is_dir()), reverse=True)

    def _remove_unfinished(self) -> None:
        """What a killed process left of a save; only one process writes a run."""
        for each in self.root.glob(".step-*"):
            shutil.rmtree(each, ignore_errors=True)

    def _not_written(self, step: int, problem: Exception) -> str:
        whole = next((each for each in self._folders() if _is_whole(each)), None)
        earlier = f"{whole} is whole" if whole else "there is no earlier one"
        return (
            f"the checkpoint of step {step} could not be written to {self.root} ({problem}); {earlier}. "
            "Make room, then go on with --resume"
        )


def _read(folder: Path) -> Saved:
    stored = json.loads((folder / STATE).read_text())
    digest = stored.pop("self")
    if digest != _digest(stored):
        raise ValueError(f"{STATE} is not what was written")
    if stored["sha256"] != sha256(folder / TENSORS):
        raise ValueError(f"{TENSORS} is not what was written")
    with safe_open(folder / TENSORS, framework="pt") as file:  # type: ignore[no-untyped-call]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return Saved(int(stored["step"]), tensors, stored["values"])


def _is_whole(folder: Path) -> bool:
    try:
        _read(folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False
    return True


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
