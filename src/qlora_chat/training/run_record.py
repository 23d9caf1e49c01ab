"""What a run was begun with, kept beside it: so that it can be gone on with, and so that its adapter describes itself.

Scope: run.json in the run's folder, and the record of the finished adapter. Knows no steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlora_chat import __version__
from qlora_chat.models import Notify
from qlora_chat.prompt import prompt_format
from qlora_chat.settings import SettingsError
from qlora_chat.training import TrainError
from qlora_chat.training.adapter import replace_text
from qlora_chat.training.base import FoundBase
from qlora_chat.training.data.dialogues import Dialogues
from qlora_chat.training.memory import StepPlan
from qlora_chat.training.recipe import TrainSettings

RUN = "run.json"


@dataclass(frozen=True)
class Run:
    """A run's folder and what it was begun with."""

    folder: Path
    values: Mapping[str, Any]
    plan: StepPlan | None
    """How its steps are run, once that is settled; a run that is gone on with keeps it, because sums depend on it."""
    resumed: bool

    def plan_of(self) -> StepPlan:
        """The plan, which must be settled."""
        if self.plan is None:
            raise ValueError("the plan is not settled yet")
        return self.plan

    def with_plan(self, plan: StepPlan) -> Run:
        """The same with its plan settled and written down. TrainError if the folder cannot be written."""
        values = {**self.values, "plan": asdict(plan)}
        try:
            replace_text(self.folder / RUN, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        except OSError as problem:
            raise TrainError(f"--out {self.folder} cannot be written ({problem})") from problem
        return replace(self, values=values, plan=plan)


def begin(
    folder: Path, settings: TrainSettings, dialogues: Dialogues, found: FoundBase, *, resume: bool, notify: Notify
) -> Run:
    """A new run, or the one that is in the folder. TrainError where it would overwrite another, or is not the same."""
    now: dict[str, Any] = {
        "tool": f"qlora-chat {__version__}",
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.recorded(),
        "data": {"files": list(dialogues.files), "sha256": dialogues.digest, "dialogues": len(dialogues.conversations)},
        "base": dict(found.identity),
    }
    before = read_run(folder)
    if before is None:
        if resume:
            notify(f"there is no run in {folder} yet; it begins now")
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainError(f"--out {folder} is there and holds something else; give a folder that is new or empty")
        _make(folder)  # before the minutes that a large base takes
        return Run(folder, now, None, False)
    if not resume:
        raise TrainError(f"--out {folder} holds a run already; go on with it by --resume, or give another folder")
    _check_same(folder, before, now)
    return Run(folder, {**before, "settings": now["settings"]}, StepPlan(**before["plan"]), True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise TrainError(f"--out {folder} cannot be made ({problem.strerror}); give another folder") from problem


def read_run(folder: Path) -> dict[str, Any] | None:
    """What is in a folder's run.json, or None where there is none. TrainError if it cannot be read."""
    path = folder / RUN
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        StepPlan(**values["plan"])
        return {**values, "settings": dict(values["settings"]), "data": dict(values["data"]), "base": dict(values["base"])}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise TrainError(f"{path} cannot be read ({problem}); give another --out") from problem


def settings_of(folder: Path, flags: Mapping[str, Any]) -> TrainSettings | None:
    """Settings of the run in a folder, with other steps or epochs if they are asked for; None where there is no run.

    SettingsError for a flag that would make it another run.
    """
    values = read_run(folder)
    if values is None:
        return None
    stored = TrainSettings(**values["settings"])
    given = {name: value for name, value in flags.items() if value is not None}
    asked = TrainSettings(**{**values["settings"], **given})
    changed = [
        name for name in given if name not in ("steps", "epochs", "data") and getattr(asked, name) != getattr(stored, name)
    ]
    if changed:
        name = changed[0]
        raise SettingsError(
            f"--resume goes on with {name} {getattr(stored, name)!r}, as the run in {folder} was begun; "
            f"{getattr(asked, name)!r} needs a run of its own: give another --out"
        )
    return asked


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before["data"]["sha256"] != now["data"]["sha256"]:
        raise TrainError(f"the dialogues are not those that the run in {folder} was begun with; it cannot be gone on with")
    if before["base"]["files"] != now["base"]["files"]:
        raise TrainError(f"the base is not the one that the run in {folder} was begun with; it cannot be gone on with")


def adapter_record(run: Run, settings: TrainSettings, losses: tuple[float | None, float | None], steps: int) -> dict[str, Any]:
    """What the finished adapter says of itself (qlora_chat.json)."""
    form = prompt_format(settings.prompt_format)
    base = run.values["base"]
    return {
        "format": 1,
        "tool": f"qlora-chat {__version__}",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": "adapter",
        "prompt_format": form.name,
        "stop_texts": list(form.stop_texts),
        "stop_tokens": list(form.stop_tokens),
        "base": base["name"],
        "base_revision": base["revision"],
        "base_files": base["files"],
        "quantisation": "nf4, double",
        "data": run.values["data"],
        "settings": settings.recorded(),
        "steps": steps,
        "loss": losses[0],
        "held_out_loss": losses[1],
    }
