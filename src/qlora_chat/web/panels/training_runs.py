"""Training runs that the page starts: each a `qlora-chat train` in a process of its own, in a folder of its own.

    NAME/command.json   arguments, for who resumes it
    NAME/data/          the file that was dropped on the page
    NAME/adapter/       --out: the run's record, metrics, checkpoints, and the finished adapter
    NAME/log.txt        all that the command printed
    NAME/process.json   the process while it runs, and how it ended

Scope: folders, processes, and what their files say. One run at a time. A run ends with the server that started it, however that
ends, because its standard input ends then: after the step that is running, saved. Knows no page and no tensor.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_chat.errors import UserError
from qlora_chat.private_files import make_private_folder, private_opener, replace_file
from qlora_chat.text import json_object

State = Literal["running", "finished", "stopped", "failed", "interrupted"]
"""interrupted: its process is gone, and nobody saw how it ended."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,59}")
INTERRUPTED = 130
"""Exit code of a run that was stopped and saved."""
SAVING_S = 5.0
"""Longest time that a server that ends waits for a run to save itself."""
LOG_LINES = 6


class RunError(UserError, RuntimeError):
    """A run cannot be started, stopped or resumed; the message says why."""


@dataclass(frozen=True)
class RunView:
    """A run as its files describe it."""

    name: str
    adapter: Path
    """Folder of the adapter."""
    state: State
    step: int
    steps: int | None
    """None before the first step is planned."""
    metrics: Sequence[Mapping[str, Any]]
    """Lines of metrics.jsonl."""
    log: Sequence[str]
    """The newest lines of the command."""
    base: str
    """As --base names it."""


class TrainingRuns:
    """The runs in one folder; safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Nothing is created before the first run starts."""
        self.folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._name: str | None = None

    @property
    def running(self) -> str | None:
        """Name of the run whose process this server started and that has not ended."""
        process = self._process
        return self._name if process and process.poll() is None else None

    def names(self) -> list[str]:
        """Names of all runs, the newest first."""
        folders = [each for each in self.folder.iterdir() if (each / "command.json").is_file()] if self.folder.is_dir() else []
        return [each.name for each in sorted(folders, key=lambda each: (each / "command.json").stat().st_mtime, reverse=True)]

    def start(self, name: str, arguments: Sequence[str], data: Path | None = None) -> None:
        """Begin a run. `arguments` of `train` without --out; `data` is a file to move into the run's folder. RunError."""
        if not NAME.fullmatch(name):
            raise RunError("A name has 1 to 60 letters, digits, dots, dashes and underscores; it begins with a letter.")
        with self._lock:
            self._expect_idle()
            folder = self.folder / name
            if folder.exists():
                raise RunError(f"There is a run called {name} already: choose another name, or resume it.")
            try:
                make_private_folder(folder / "data")
                if data:
                    moved = Path(shutil.move(data, folder / "data" / data.name))
                    arguments = [*arguments, "--data", str(moved)]
                replace_file(folder / "command.json", [json.dumps({"arguments": list(arguments)})])
                self._begin(name, [])
            except OSError as problem:
                raise RunError(f"{folder} cannot be written ({problem.strerror or problem}).") from problem

    def resume(self, name: str) -> None:
        """Continue a run that was stopped, interrupted or failed. RunError."""
        with self._lock:
            self._expect_idle()
            view = self.view(name)
            if view is None or view.state in ("running", "finished"):
                raise RunError(
                    "That run cannot be resumed: it has ended, or it is running." if view else "There is no such run."
                )
            self._begin(name, ["--resume"])

    def stop(self) -> None:
        """Ask the running one to save itself and end: its input ends, as it does with this server."""
        process = self._process
        if process and process.stdin:
            process.stdin.close()

    def view(self, name: str) -> RunView | None:
        """A run as it is now; None where there is none of that name."""
        folder = self.folder / name
        if not NAME.fullmatch(name) or not (folder / "command.json").is_file():
            return None
        adapter = folder / "adapter"
        metrics = _lines(adapter / "metrics.jsonl")
        step = max((int(each["step"]) for each in metrics if "loss" in each), default=0)
        steps = _read(adapter / "run.json").get("steps")
        arguments = [str(each) for each in _read(folder / "command.json").get("arguments", ())]
        base = arguments[arguments.index("--base") + 1] if "--base" in arguments[:-1] else ""
        return RunView(name, adapter, self._state(name), step, steps, metrics, _tail(folder / "log.txt"), base)

    def close(self, seconds: float = SAVING_S) -> None:
        """End the running one, for the server ends. One that takes longer to save itself does so after the server's end."""
        self.stop()
        if self._process:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def _begin(self, name: str, more: Sequence[str]) -> None:
        folder = self.folder / name
        arguments = _read(folder / "command.json")["arguments"]
        fixed = ["train", "--out", str(folder / "adapter"), "--stop-on-eof"]
        command = [sys.executable, "-m", "qlora_chat", *fixed, *arguments, *more]
        with open(folder / "log.txt", "ab", opener=private_opener) as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        self._process, self._name = process, name
        import psutil  # not there where other servers compute the answers

        with_nice = psutil.Process(process.pid)
        replace_file(folder / "process.json", [json.dumps({"pid": process.pid, "started": with_nice.create_time()})])
        with_nice.nice(10)  # who chats meanwhile shall notice as little as possible
        threading.Thread(target=_note_end, args=(process, folder / "process.json"), daemon=True).start()

    def _expect_idle(self) -> None:
        running = next((name for name in self.names() if self._state(name) == "running"), None)
        if running:
            raise RunError(f"The run {running} is not finished: one runs at a time. Stop it first, or wait for its end.")

    def _state(self, name: str) -> State:
        if self.running == name:
            return "running"
        process = _read(self.folder / name / "process.json")
        if "code" not in process:
            return "running" if _is_alive(process) else "interrupted"
        if process["code"] == 0:
            return "finished"
        return "stopped" if process["code"] == INTERRUPTED else "failed"


def _note_end(process: subprocess.Popen[bytes], path: Path) -> None:
    code = process.wait()
    if process.stdin:
        process.stdin.close()  # a second time does nothing
    if code < 0 and -code not in (signal.SIGINT, signal.SIGTERM):
        return  # killed: whoever looks finds no end
    replace_file(path, [json.dumps({"code": code if code >= 0 else INTERRUPTED})])


def _is_alive(process: Mapping[str, Any]) -> bool:
    import psutil

    try:
        return psutil.Process(int(process["pid"])).create_time() == process["started"]
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json_object(path.read_bytes()) or {}
    except OSError:
        return {}


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """Records of a file of JSON lines, without one that is being written."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    return [record for line in text.split("\n") if (record := json_object(line))]


def _tail(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[-LOG_LINES - 1 : -1]
    except OSError:
        return []
