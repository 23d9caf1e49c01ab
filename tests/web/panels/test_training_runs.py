"""Runs that the page starts: one at a time, in a folder of their own, and never gone without a word."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_chat.web.panels.training_runs import RunError, TrainingRuns
from tests.models.conftest import tiny_nf4_base
from tests.training.conftest import few_dialogues

__all__ = ["few_dialogues", "tiny_nf4_base"]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[TrainingRuns]:
    runs = TrainingRuns(tmp_path / "training")
    yield runs
    runs.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def state(runs: TrainingRuns, name: str = "mine") -> str:
    view = runs.view(name)
    assert view
    return view.state


@pytest.mark.timeout(400)
def test_a_run_is_stopped_resumed_killed_and_finished(
    runs: TrainingRuns, tiny_nf4_base: Path, few_dialogues: Path, tmp_path: Path
) -> None:
    assert not runs.folder.exists(), "nothing is written before a run starts"
    dropped = tmp_path / "dropped.jsonl"
    dropped.write_text(few_dialogues.read_text())
    line = ["--base", str(tiny_nf4_base), "--r", "4", "--batch", "4", "--max-length", "48", "--device", "cpu"]
    runs.start("mine", [*line, "--steps", "400", "--save-every", "1"], dropped)
    assert not dropped.exists(), "the file belongs to the run now"
    with pytest.raises(RunError, match="one runs at a time"):
        runs.start("other", line)
    until(lambda: (view := runs.view("mine")) and view.step > 1)
    runs.stop()
    until(lambda: state(runs) == "stopped")

    runs.resume("mine")
    assert runs.running == "mine"
    reached = runs.view("mine")
    until(lambda: (view := runs.view("mine")) and reached and view.step > reached.step)
    assert runs._process
    runs._process.kill()
    until(lambda: state(runs) == "interrupted")

    again = TrainingRuns(runs.folder)  # another server, later
    assert again.names() == ["mine"]
    command = runs.folder / "mine" / "command.json"
    arguments = json.loads(command.read_text())["arguments"]
    command.write_text(json.dumps({"arguments": [each.replace("400", "6") for each in arguments]}))
    again.resume("mine")
    until(lambda: state(again) not in ("running", "interrupted"))
    view = again.view("mine")
    assert view
    assert view.state == "finished", view.log
    assert (view.adapter / "adapter_model.safetensors").is_file()
    assert view.base == str(tiny_nf4_base)
    with pytest.raises(RunError, match="cannot be resumed"):
        again.resume("mine")
    with pytest.raises(RunError, match="already"):
        again.start("mine", line)


def test_a_run_that_fails_says_why(runs: TrainingRuns, few_dialogues: Path) -> None:
    runs.start("bad", ["--base", "/nowhere", "--data", str(few_dialogues)])
    until(lambda: state(runs, "bad") == "failed")
    view = runs.view("bad")
    assert view
    assert "/nowhere" in " ".join(view.log)
    assert (view.step, view.steps) == (0, None)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "1x", "x" * 61])
def test_a_name_cannot_leave_the_folder(runs: TrainingRuns, name: str) -> None:
    with pytest.raises(RunError, match="A name has"):
        runs.start(name, [])
    assert runs.view(name) is None
    assert not runs.folder.exists()
