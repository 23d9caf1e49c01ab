"""Whole runs: killed and gone on with, a full disk, a bad number, an adapter that chat can use."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qlora_chat.models.folders import Base
from qlora_chat.models.resolve import demo
from qlora_chat.settings import SettingsError
from qlora_chat.training import TrainError
from qlora_chat.training.base import FoundBase
from qlora_chat.training.checkpoint import TENSORS, Checkpoints
from qlora_chat.training.dialogues import Dialogues
from qlora_chat.training.record import begin, settings_of
from qlora_chat.training.watch import WINDOW, Watch
from tests.training.conftest import Command, finished, one_thread

EVERY_STEP = ("--steps", "40", "--save-every", "1", "--eval-every", "20")


def digest(out: Path) -> str:
    return hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest()


def killed(line: list[str], out: Path, step: int, chance: random.Random) -> bool:
    """Start, and kill -9 some time after the checkpoint of a step is there; whether the process was still running."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread())
    while process.poll() is None and newest_step(out) < step:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


@pytest.mark.timeout(400)
def test_a_run_that_is_killed_and_damaged_ends_with_the_very_same_adapter(command: Command, tmp_path: Path) -> None:
    whole = finished(command(tmp_path / "whole", *EVERY_STEP))
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "broken"
    line = command(out, *EVERY_STEP, "--resume")
    chance = random.Random(1)
    assert all(killed(line, out, step, chance) for step in (5, 15))
    damage(newest(out))
    last = finished(line)
    assert last.returncode == 0, last.stderr
    assert digest(out) == digest(tmp_path / "whole")
    assert "is damaged" in last.stderr
    steps = [json.loads(text)["step"] for text in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in text]
    assert steps == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_fifty_kills_at_random_points(command: Command, tmp_path: Path) -> None:
    settings = ("--steps", "300", "--save-every", "1", "--eval-every", "100")
    assert finished(command(tmp_path / "whole", *settings), 600).returncode == 0
    out = tmp_path / "broken"
    line, chance = command(out, *settings, "--resume"), random.Random(2)
    assert all(killed(line, out, newest_step(out) + chance.randint(1, 4), chance) for _ in range(50))
    assert finished(line, 600).returncode == 0
    assert digest(out) == digest(tmp_path / "whole")


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def newest_step(out: Path) -> int:
    return max((int(each.name[5:]) for each in (out / "checkpoints").glob("step-*")), default=0)


def damage(checkpoint: Path) -> None:
    """Turn over one bit in the midst of its tensors."""
    path = checkpoint / TENSORS
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(bytes(contents))


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_notice(tmp_path: Path, said: list[str]) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", said.append)
    for step in (10, 20):
        checkpoints.save(step, {"adapter.x": torch.full((64,), float(step))}, {})
    damage(tmp_path / "checkpoints" / "step-00000020")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 10
    assert "step-00000020 is damaged" in said[0]
    (tmp_path / "checkpoints" / "step-00000010" / "state.json").write_text("{}")
    assert checkpoints.newest() is None


def test_only_the_newest_two_checkpoints_are_kept(tmp_path: Path, said: list[str]) -> None:
    checkpoints = Checkpoints(tmp_path, said.append)
    (tmp_path / ".step-00000001.999999").mkdir()
    for step in range(1, 5):
        checkpoints.save(step, {"adapter.x": torch.zeros(1)}, {})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.timeout(240)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run_goes_on(command: Command, small_disk: Path) -> None:
    out = small_disk / "out"
    line = command(out, "--steps", "6", "--save-every", "3", "--held-out", "0")
    base = Base.read(Path(line[line.index("--base") + 1]))
    parameters = sum(4 * (outs + ins) for name, (outs, ins) in base.linears().items() if name != "lm_head")
    (small_disk / "ballast").write_bytes(b"0" * (2 * 2**20 - 12 * parameters * 7 // 4))
    full = finished(line)
    assert full.returncode == 1, full.stderr
    assert "the checkpoint of step 6 could not be written" in full.stderr
    assert "step-00000003 is whole" in full.stderr
    assert "Traceback" not in full.stderr
    (small_disk / "ballast").unlink()
    resumed = finished(command(out, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step 3 of 6" in resumed.stderr
    assert (out / "adapter_model.safetensors").is_file()


def test_ctrl_c_saves_and_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = command(out, "--steps", "5000", "--save-every", "5000")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread())
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):  # a step has been made
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert f"to go on: qlora-chat train --resume --out {out}" in told
    assert Checkpoints(out / "checkpoints", print).newest() is not None
    assert not (out / "adapter_model.safetensors").exists()
    asked = settings_of(out, {})
    assert asked is not None
    assert asked.steps == 5000
    with pytest.raises(SettingsError, match="goes on with r 4"):
        settings_of(out, {"r": 8})
    with pytest.raises(TrainError, match="holds a run already"):
        begin(out, asked, Dialogues((), "x", (), {}), FoundBase(demo(), {}), resume=False, notify=print)
    with pytest.raises(TrainError, match="dialogues are not those"):
        begin(out, asked, Dialogues((), "x", (), {}), FoundBase(demo(), {}), resume=True, notify=print)


def test_bad_data_is_told_before_a_weight_is_loaded(command: Command, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n')
    line = command(tmp_path / "out", "--data", str(bad), "--base", str(tmp_path / "no-such-base"))
    ended = finished(line)
    assert ended.returncode == 1
    assert "bad.jsonl:1: messages[0] is the assistant's" in ended.stderr
    assert not (tmp_path / "out").exists()


# --- warnings --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    with pytest.raises(TrainError, match="the loss of step 3 is nan"):
        Watch().trained(3, math.nan, 1.0)
    with pytest.raises(TrainError, match="gradients of step 4"):
        Watch().trained(4, 1.0, math.inf)


def test_a_rising_loss_is_warned_of_once_in_a_while() -> None:
    watch = Watch()
    losses = [2.0 - 0.01 * step for step in range(60)] + [2.0 + 0.05 * step for step in range(40)]
    warnings = [told for step, loss in enumerate(losses, start=1) if (told := watch.trained(step, loss, 1.0))]
    assert len(warnings) == 1
    assert "the loss rises" in warnings[0]
    calm = Watch()
    assert not any(calm.trained(step, 1.0 + 0.05 * (-1) ** step, 1.0) for step in range(5 * WINDOW))


def test_a_held_out_loss_that_rises_is_told_with_the_best_step() -> None:
    watch = Watch()
    assert [bool(watch.held_out(step, loss)) for step, loss in ((10, 1.5), (20, 1.2), (30, 1.21), (40, 1.4))] == [
        False,
        False,
        False,
        True,
    ]
