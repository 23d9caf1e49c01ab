"""A run that is only checked, one whose adapter answers while it is trained, and one that ends with its reader."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from qlora_chat.settings import SettingsError
from qlora_chat.training.check import check_run
from qlora_chat.training.recipe import settings_from
from qlora_chat.training.run_record import RUN
from tests.training.conftest import Command
from tests.training.processes import RunningCommand, run_command


def test_a_check_lists_records_and_predicts_the_run_that_then_happens(
    command: Command, tmp_path: Path, few_dialogues: Path, tiny_nf4_base: Path, notices: list[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(few_dialogues.read_text() + '{"odd": 1}\n')
    small = {"r": 4, "alpha": 8, "batch": 4, "max_length": 48}
    settings = settings_from({}, {"base": str(tiny_nf4_base), "data": [str(data)], **small})
    found = check_run(settings, notices.append, device="cpu")
    assert (found.bad, found.dialogues + found.held_out) == (1, 24)
    assert "data.jsonl:25: has 'odd'" in found.problems[0]
    assert 0 < found.loss_tokens < found.tokens
    assert found.predicted_bytes < found.free_bytes
    assert found.predicted_seconds > 0
    first, line = found.records[0], json.loads(few_dialogues.read_text().splitlines()[0])
    assert [each["text"] for each in first["messages"]] == [each["content"] for each in line["messages"]]
    assert [each["learned"] for each in first["messages"]] == [False, True]
    assert any(f"{found.steps} steps" in each for each in found.lines())

    out = tmp_path / "run"
    result = run_command(command(out, "--sample", "Who are you?", "--epochs", "1"), tmp_path / "output")
    assert result.code == 0, result.output
    assert json.loads((out / RUN).read_text())["steps"] == found.steps
    lines = [json.loads(each) for each in (out / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in lines if "sample" in each][-1] == found.steps


def test_a_sample_does_not_change_the_adapter(command: Command, tmp_path: Path) -> None:
    adapters = []
    for name, more in (("with", ("--sample", "Who are you?")), ("without", ())):
        result = run_command(command(tmp_path / name, "--steps", "3", *more), tmp_path / "output")
        assert result.code == 0, result.output
        adapters.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


def test_a_run_ends_saved_when_its_input_ends(command: Command, tmp_path: Path) -> None:
    typed, output = tmp_path / "typed", tmp_path / "output"
    os.mkfifo(typed)
    process = RunningCommand(command(tmp_path / "run", "--steps", "100000", "--stop-on-eof"), output, typed)
    with typed.open("wb"):
        while process.alive and "step 1 of" not in output.read_text():
            time.sleep(0.01)
        assert process.alive, output.read_text()
    result = process.wait()
    assert result.code == 130, result.output
    assert "saved; to continue" in result.output
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_a_check_needs_base_and_data() -> None:
    with pytest.raises(SettingsError, match="no base"):
        settings_from({}, {"data": ["x"]})
