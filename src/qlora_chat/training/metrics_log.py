"""The output of a run: a line per step in metrics.jsonl, a plot of the losses, a progress bar.

Scope: files and terminal. Knows no model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from qlora_chat.json_records import json_lines
from qlora_chat.models import Notify
from qlora_chat.training import TrainError
from qlora_chat.training.adapter import replace_text

METRICS, PLOT = "metrics.jsonl", "loss.png"


class MetricsLog:
    """metrics.jsonl of one run: an object per step, and one per evaluation of the held-out dialogues."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open the file for appending; lines beyond `step`, left by a killed run, are dropped because they come again."""
        self.path = folder / METRICS
        lines = [line for line in self.lines() if line["step"] <= step]
        with self._write_errors():
            replace_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
            self._file = self.path.open("a")

    def lines(self) -> list[dict[str, Any]]:
        """Every complete line so far, without losses that are no numbers: a process may have been killed while it wrote one."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        values = [each.value for each in json_lines(data) if each.problem is None]
        return [{name: value for name, value in each.items() if value is not None} for each in values]

    def add(self, values: Mapping[str, Any]) -> None:
        """Append a line and flush it. TrainError if the disk refuses it."""
        with self._write_errors():
            self._file.write(json.dumps(dict(values)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # lines that a full disk refused are written again when the run is resumed
            self._file.close()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise TrainError(f"{self.path} cannot be written ({problem}); make room, then continue with --resume") from problem


def plot_losses(metrics: MetricsLog, folder: Path, notify: Notify) -> None:
    """Draw loss.png from metrics.jsonl; a failure is reported and ends nothing."""
    try:
        _plot(metrics, folder)
    except OSError as problem:
        notify(f"no {PLOT} ({problem}); the numbers are in {METRICS}")


def _plot(metrics: MetricsLog, folder: Path) -> None:
    from matplotlib.figure import Figure

    lines = metrics.lines()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]
    if trained:
        axes.plot(*zip(*trained, strict=True), color="tab:blue", alpha=0.35, linewidth=1, label="a step")
        axes.plot(*zip(*_smooth(trained), strict=True), color="tab:blue", label="mean of the last 20")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", label="held out")
    axes.set(xlabel="step", ylabel="loss, nats a token", title=folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / PLOT, dpi=120)


def _smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    windows = (points[max(0, end - 20) : end] for end in range(1, len(points) + 1))
    return [(window[-1][0], fmean(loss for _, loss in window)) for window in windows]


class ProgressDisplay:
    """A progress bar on a terminal, ten lines elsewhere."""

    def __init__(self, steps: int, start: int, notify: Notify) -> None:
        self._steps, self._notify = steps, notify
        self._every = max(1, steps // 10)
        self._progress = _bar(steps, start) if sys.stderr.isatty() else None

    def update(self, step: int, loss: float, tokens_per_s: float, gib: float, seconds_left: float) -> None:
        """Show the state after a step."""
        figures = f"loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s  {gib:.1f} GiB"
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, figures=figures)
        elif step == 1 or step % self._every == 0 or step == self._steps:
            self._notify(f"step {step} of {self._steps}  {figures}  {_format_time(seconds_left)} left")

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            self._notify(line)

    def close(self) -> None:
        """Stop the bar."""
        if self._progress is not None:
            self._progress.stop()


def _bar(steps: int, start: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    progress = Progress(*columns, console=Console(stderr=True))
    progress.add_task("", total=steps, completed=start, figures="")
    progress.start()
    return progress


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
