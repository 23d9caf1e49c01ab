"""run.json: the settings, data and base that a run started with, and the record that its adapter carries.

Scope: one file in the run's folder, read once and checked when the run is resumed. Knows no steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlora_chat import __version__
from qlora_chat.models.part import ModelPart
from qlora_chat.prompt import ChatFormat
from qlora_chat.settings import SettingsError
from qlora_chat.training import TrainError
from qlora_chat.training.adapter import replace_text
from qlora_chat.training.data.dialogues import Dialogues
from qlora_chat.training.memory import StepPlan
from qlora_chat.training.recipe import TrainSettings

RUN = "run.json"


@dataclass(frozen=True)
class Run:
    """A run's folder and the contents of its run.json, which are empty until a new run starts."""

    folder: Path
    record: Mapping[str, Any]
    resumed: bool

    @property
    def plan(self) -> StepPlan | None:
        """Plan of the steps, once there is one; a resumed run keeps its plan, because floating-point sums depend on it."""
        return StepPlan(**self.record["plan"]) if "plan" in self.record else None

    def resumed_settings(self, flags: Mapping[str, Any]) -> TrainSettings:
        """Return the recorded settings with other steps, epochs or data paths.

        SettingsError for a flag that would change the run itself.
        """
        stored = TrainSettings(**self.record["settings"])
        settings = TrainSettings(**{**self.record["settings"], **flags})
        for name in flags:
            before, now = getattr(stored, name), getattr(settings, name)
            if name not in ("steps", "epochs", "data") and before != now:
                raise SettingsError(
                    f"the run in {self.folder} started with {name} {before!r}, and --resume continues with it; "
                    f"{now!r} needs another run: choose another --out"
                )
        return settings

    def start(self, settings: TrainSettings, dialogues: Dialogues, base: ModelPart, adapter: ModelPart | None = None) -> Run:
        """Return the run with its record filled in, and make its folder; `adapter` is the one that it goes on from.

        TrainError if a resumed run started with other data, another base or adapter, or the folder cannot be made.
        """
        record: dict[str, Any] = {
            "tool": f"qlora-chat {__version__}",
            "begun": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": settings.as_dict(),
            "data": {"files": list(dialogues.files), "sha256": dialogues.digest, "dialogues": dialogues.formats.total()},
            "base": {"name": base.name, "revision": base.revision, "files": base.fingerprints},
        }
        if adapter:
            record["start"] = {"name": adapter.name, "files": adapter.fingerprints}
        if self.resumed:
            self._check_same(record)
            return replace(self, record={**self.record, "settings": record["settings"]})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # before the minutes that preparing a large base takes
        except OSError as problem:
            raise TrainError(f"--out {self.folder} cannot be made ({problem.strerror}); choose another folder") from problem
        return replace(self, record=record)

    def with_plan(self, plan: StepPlan, steps: int) -> Run:
        """Write run.json with this plan and number of steps, and return the run. TrainError if the folder cannot be written."""
        return self._written({**self.record, "plan": asdict(plan), "steps": steps})

    def with_settings(self, settings: TrainSettings) -> Run:
        """Write run.json with these settings and return the run. TrainError if the folder cannot be written."""
        return self._written({**self.record, "settings": settings.as_dict()})

    def _written(self, record: Mapping[str, Any]) -> Run:
        try:
            replace_text(self.folder / RUN, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        except OSError as problem:
            raise TrainError(f"--out {self.folder} cannot be written ({problem})") from problem
        return replace(self, record=record)

    def adapter_record(
        self, settings: TrainSettings, template: ChatFormat, steps: int, loss: float | None, held_out: float | None
    ) -> dict[str, Any]:
        """Return the finished adapter's description of itself (qlora_chat.json)."""
        base = self.record["base"]
        return {
            "format": 1,
            "tool": f"qlora-chat {__version__}",
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "kind": "adapter",
            "prompt_format": template.name,
            "stop_texts": list(template.stop_texts),
            "stop_tokens": list(template.stop_tokens),
            "base": base["name"],
            "base_revision": base["revision"],
            "base_files": base["files"],
            "quantisation": "nf4, double",
            "data": self.record["data"],
            **({"start": self.record["start"]} if "start" in self.record else {}),
            "settings": settings.as_dict(),
            "steps": steps,
            "loss": loss,
            "held_out_loss": held_out,
        }

    def _check_same(self, record: Mapping[str, Any]) -> None:
        if self.record["data"]["sha256"] != record["data"]["sha256"]:
            raise TrainError(
                f"the run in {self.folder} started with other dialogues; it can only be resumed with the same data"
            )
        if self.record["base"]["files"] != record["base"]["files"]:
            raise TrainError(f"the run in {self.folder} started with another base; it can only be resumed with the same base")
        if (self.record.get("start") or {}).get("files") != (record.get("start") or {}).get("files"):
            raise TrainError(f"the adapter that the run in {self.folder} went on from has changed; restore it, or begin anew")


def open_run(folder: Path, *, resume: bool) -> Run:
    """Return the run in a folder, or a new one. TrainError if it would overwrite something or cannot be read."""
    record = _read_record(folder / RUN)
    if record is not None and not resume:
        raise TrainError(f"--out {folder} holds a run already; continue it with --resume, or choose another folder")
    if record is None and not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrainError(f"--out {folder} exists and holds something else; choose a folder that is new or empty")
    return Run(folder, record or {}, record is not None)


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        StepPlan(**record["plan"])
        return {**record, **{part: dict(record[part]) for part in ("settings", "data", "base")}}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise TrainError(f"{path} cannot be read ({problem}); choose another --out") from problem
