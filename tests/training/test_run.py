"""Whole runs: killed and resumed, a full disk, a loss that is not finite, an adapter that chat can use."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qlora_chat.models.folders import Base
from qlora_chat.models.placement import detect_devices
from qlora_chat.settings import SettingsError
from qlora_chat.training import TrainError
from qlora_chat.training.checkpoint import TENSORS, Checkpoints
from qlora_chat.training.data.dialogues import Dialogues
from qlora_chat.training.divergence import WINDOW, DivergenceMonitor, not_finite
from qlora_chat.training.metrics_log import MetricsLog, plot_losses
from qlora_chat.training.resolve import locate_base
from qlora_chat.training.run_record import open_run
from tests.training.conftest import Command
from tests.training.processes import RunningCommand, run_command


def digest(out: Path) -> str:
    return hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest()


def killed(line: list[str], out: Path, step: int, chance: random.Random) -> str:
    """Start, and kill -9 after the checkpoint of a step: some time later, or during the next save. Returns which."""
    where = chance.choice(["anywhere", "in a save"])
    for _ in range(5):
        process = RunningCommand(line, out.with_name("output"))
        while process.alive and newest_step(out) < step:
            time.sleep(0.001)
        while where == "in a save" and process.alive and not saving(out):
            time.sleep(0.0002)
        time.sleep(chance.uniform(0, 0.05) if where == "anywhere" else chance.uniform(0, 0.003))
        if process.alive:
            process.kill()
            return "in a save" if saving(out) else "anywhere"
        result = process.wait()
        assert result.code == 0, result.output
        shutil.rmtree(out)  # this process slept too long, and the run ended
    pytest.fail("five runs in a row ended before they could be killed")


@pytest.mark.parametrize(
    ("kills", "steps"), [pytest.param(2, 40, id="twice"), pytest.param(50, 400, id="50 times", marks=pytest.mark.slow)]
)
@pytest.mark.timeout(500)
def test_a_killed_and_damaged_run_ends_with_the_very_same_adapter(
    kills: int, steps: int, command: Command, tmp_path: Path
) -> None:
    settings = ("--steps", str(steps), "--save-every", "1", "--eval-every", "20")
    out, output, chance = tmp_path / "broken", tmp_path / "output", random.Random(kills)
    assert run_command(command(tmp_path / "whole", *settings), output).code == 0
    line = command(out, *settings, "--resume")
    where = Counter(killed(line, out, newest_step(out) + chance.randint(0, 3), chance) for _ in range(kills))
    assert kills < 50 or min(where["in a save"], where["anywhere"]) > 10, where
    damage(newest(out))
    last = run_command(line, output)
    assert last.code == 0, last.output
    assert digest(out) == digest(tmp_path / "whole")
    assert "is damaged" in last.output
    assert [each["step"] for each in losses(out)] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_resumed_run_in_8_bits_ends_with_the_very_same_adapter(command: Command, tmp_path: Path) -> None:
    eight_bits = ("--optimizer", "paged_adamw_8bit", "--r", "64")  # smaller matrices have their state in 32 bits
    output, settings = tmp_path / "output", (*eight_bits, "--held-out", "0", "--save-every", "3")
    assert run_command(command(tmp_path / "whole", *settings, "--steps", "9"), output).code == 0
    out = tmp_path / "broken"
    line = command(out, *settings, "--steps", "9", "--resume")
    killed(line, out, 3, random.Random(3))
    last = run_command(line, output)
    assert last.code == 0, last.output
    assert "resuming after step" in last.output
    assert digest(out) == digest(tmp_path / "whole")
    for path in (out / "checkpoints" / "step-00000009").glob("*.safetensors"):
        assert any(each.dtype == torch.uint8 for each in load_file(path).values()), "the optimizer state is in 8 bits"


def losses(out: Path) -> list[dict[str, Any]]:
    """The steps' lines of metrics.jsonl."""
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def saving(out: Path) -> bool:
    return any((out / "checkpoints").glob(".step-*"))


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def newest_step(out: Path) -> int:
    return max((int(each.name[5:]) for each in (out / "checkpoints").glob("step-*")), default=0)


def damage(checkpoint: Path) -> None:
    """Flip one bit in the middle of its tensors."""
    path = checkpoint / TENSORS
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(bytes(contents))


def test_a_damaged_newest_checkpoint_is_skipped_with_a_notice(tmp_path: Path, notices: list[str]) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", notices.append)
    for step in (10, 20):
        checkpoints.save(step, {"adapter.x": torch.full((64,), float(step))}, {})
    damage(tmp_path / "checkpoints" / "step-00000020")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 10
    assert "step-00000020 is damaged" in notices[0]
    (tmp_path / "checkpoints" / "step-00000010" / "state.json").write_text("{}")
    assert checkpoints.newest() is None


def test_older_checkpoints_than_the_newest_two_are_deleted(tmp_path: Path, notices: list[str]) -> None:
    checkpoints = Checkpoints(tmp_path, notices.append)
    (tmp_path / ".step-00000001.999999").mkdir()
    for step in range(1, 5):
        checkpoints.save(step, {"adapter.x": torch.zeros(1)}, {})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_full_disk_is_reported_when_metrics_are_written(small_disk: Path) -> None:
    metrics = MetricsLog(small_disk, 0)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(b"0" * 4096):
            pass

    def many() -> None:
        for step in range(1000):
            metrics.add({"step": step, "loss": 1.0})

    with pytest.raises(TrainError, match=r"metrics\.jsonl cannot be written .*make room, then continue with --resume"):
        many()
    metrics.close()


def test_a_held_out_loss_that_was_not_finite_does_not_keep_a_run_from_being_resumed(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path, 0)
    for line in ({"step": 1, "loss": 1.0}, {"step": 1, "held_out_loss": math.nan}, {"step": 2, "held_out_loss": 0.5}):
        metrics.add(line)
    metrics.close()
    resumed = MetricsLog(tmp_path, 2)
    resumed.close()
    plot_losses(resumed, tmp_path, pytest.fail)
    assert resumed.lines() == [{"step": 1, "loss": 1.0}, {"step": 1}, {"step": 2, "held_out_loss": 0.5}]


@pytest.mark.timeout(240)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run_can_be_resumed(
    command: Command, small_disk: Path, tmp_path: Path
) -> None:
    out, output = small_disk / "out", tmp_path / "output"
    line = command(out, "--steps", "6", "--save-every", "3", "--held-out", "0")
    base = Base.read(Path(line[line.index("--base") + 1]))
    parameters = sum(4 * (outs + ins) for name, (outs, ins) in base.linears().items() if name != "lm_head")
    (small_disk / "ballast").write_bytes(b"0" * (2 * 2**20 - 12 * parameters * 7 // 4))
    full = run_command(line, output)
    assert full.code == 1, full.output
    assert "the checkpoint of step 6 could not be written" in full.output
    assert "step-00000003 is intact" in full.output
    assert "Traceback" not in full.output
    (small_disk / "ballast").unlink()
    resumed = run_command(command(out, "--resume"), output)
    assert resumed.code == 0, resumed.output
    assert "resuming after step 3 of 6" in resumed.output
    assert (out / "adapter_model.safetensors").is_file()


def test_ctrl_c_saves_and_says_how_to_resume(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = RunningCommand(command(out, "--steps", "5000", "--save-every", "5000"), tmp_path / "output")
    metrics = out / "metrics.jsonl"
    while process.alive and not (metrics.exists() and metrics.stat().st_size):  # a step has been made
        time.sleep(0.01)
    process.signal(signal.SIGINT)
    result = process.wait(60)
    assert result.code == 130, result.output
    assert f"to continue: qlora-chat train --resume --out {out}" in result.output
    assert Checkpoints(out / "checkpoints", print).newest() is not None
    assert not (out / "adapter_model.safetensors").exists()
    run = open_run(out, resume=True)
    settings = run.resumed_settings({})
    assert settings.steps == 5000
    with pytest.raises(SettingsError, match="started with r 4"):
        run.resumed_settings({"r": 8})
    with pytest.raises(TrainError, match="holds a run already"):
        open_run(out, resume=False)
    base = locate_base("demo", detect_devices("cpu")[0], print).base
    other_data = Dialogues((), "x")
    with pytest.raises(TrainError, match="started with other dialogues"):
        run.start(settings, other_data, base)
    same_data = Dialogues((), run.record["data"]["sha256"])
    with pytest.raises(TrainError, match="started with another base"):
        run.start(settings, same_data, replace(base, revision="another", folder=tmp_path))


def test_fewer_steps_than_are_done_end_with_the_adapter_of_the_newest_checkpoint(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = RunningCommand(command(out, "--steps", "5000", "--save-every", "1"), tmp_path / "output")
    while process.alive and newest_step(out) < 3:
        time.sleep(0.01)
    process.signal(signal.SIGINT)
    assert process.wait(60).code == 130
    resumed = run_command(["train", "--resume", "--steps", "2", "--out", str(out), "--device", "cpu"], tmp_path / "output")
    assert resumed.code == 0, resumed.output
    done = newest_step(out)
    assert f"{done} steps are done already, and 2 are fewer" in resumed.output
    assert json.loads((out / "qlora_chat.json").read_text())["steps"] == done
    assert json.loads((out / "run.json").read_text())["settings"]["steps"] == done


def test_a_checkpoint_is_called_intact_only_where_there_is_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, print)
    assert checkpoints.newest_in_words() == "there is no checkpoint yet"
    checkpoints.save(3, {"adapter.x": torch.zeros(1)}, {})
    assert checkpoints.newest_in_words() == f"{tmp_path}/step-00000003 is intact"


def test_ctrl_c_before_the_first_step_says_how_to_resume_too(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = RunningCommand(command(out, "--steps", "5000"), tmp_path / "output")
    while process.alive and not (out / "run.json").exists():
        time.sleep(0.0005)
    process.signal(signal.SIGINT)
    result = process.wait(60)
    assert result.code == 130, result.output
    assert f"o continue: qlora-chat train --resume --out {out}" in result.output
    assert "Traceback" not in result.output


def test_resuming_without_a_run_is_refused(tmp_path: Path) -> None:
    result = run_command(["train", "--resume", "--out", str(tmp_path / "none")], tmp_path / "output")
    assert result.code == 1
    assert "there is no run in" in result.output
    assert not (tmp_path / "none").exists()


def test_bad_data_is_reported_before_a_weight_is_loaded(command: Command, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n')
    line = command(tmp_path / "out", "--data", str(bad), "--base", str(tmp_path / "no-such-base"))
    result = run_command(line, tmp_path / "output")
    assert result.code == 1
    assert "bad.jsonl:1: messages[0] is the assistant's" in result.output
    assert not (tmp_path / "out").exists()


# --- warnings --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    assert "the loss of step 3 is nan" in str(not_finite(3, math.nan, 1.0))
    assert "the gradients of step 4 are inf" in str(not_finite(4, 1.0, math.inf))
    assert not_finite(5, 1.0, 1.0) is None


def test_a_rising_loss_gives_one_warning_in_a_while() -> None:
    monitor = DivergenceMonitor()
    losses = [2.0 - 0.01 * step for step in range(60)] + [2.0 + 0.05 * step for step in range(40)]
    warnings = [line for step, loss in enumerate(losses, start=1) if (line := monitor.check_step(step, loss))]
    assert len(warnings) == 1
    assert "the loss rises" in warnings[0]
    calm = DivergenceMonitor()
    assert not any(calm.check_step(step, 1.0 + 0.05 * (-1) ** step) for step in range(5 * WINDOW))


def test_a_warning_about_the_held_out_loss_names_the_best_step() -> None:
    monitor = DivergenceMonitor()
    assert [bool(monitor.check_held_out(step, loss)) for step, loss in ((10, 1.5), (20, 1.2), (30, 1.21), (40, 1.4))] == [
        False,
        False,
        False,
        True,
    ]
