"""The Train panel's form, its pictures, and what is switched to when a run is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_chat.models.locate import BUNDLED_ADAPTER
from qlora_chat.settings import ModelSettings, SettingsError
from qlora_chat.web.panels.train_form import arguments_of
from qlora_chat.web.panels.train_panel import BEFORE, with_both
from qlora_chat.web.panels.train_view import check_view, record_view, run_view
from qlora_chat.web.panels.training_runs import RunView, State
from qlora_chat.web.panels.upload import UploadedFiles


def run(state: State = "running", base: str = "demo", **more: Any) -> RunView:
    metrics: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0, "tokens_per_s": 100.0, "gib": 1.0, "seconds": 1.0},
        {"step": 2, "loss": 1.0, "tokens_per_s": 100.0, "gib": 1.0, "seconds": 3.0},
        {"step": 2, "held_out_loss": 1.5},
        {"step": 2, "sample": "<b>Paris"},
    ]
    fields: dict[str, Any] = {"step": 2, "steps": 10, "metrics": metrics, "log": ["<i>line"], **more}
    return RunView("mine", Path("/runs/mine/adapter"), state, base=base, **fields)


def test_the_form_is_a_command_line() -> None:
    assert arguments_of("demo", "x", 2, 8, 512, True) == [
        "--recipe", "demo", "--base", "demo", "--epochs", "2", "--batch", "8", "--max-length", "512", "--skip-bad",
    ]  # fmt: skip
    assert arguments_of(" me/base ", "x", 0.5, 8.0, 64, False)[1:5] == ["me/base", "--epochs", "0.5", "--batch"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("", "x", 1, 1, 64, False), "Base is empty"),
        (("demo", " ", 1, 1, 64, False), "no dialogues yet"),
        (("--out=/etc", "x", 1, 1, 64, False), "cannot begin with a dash"),
        (("demo", "x", 0, 1, 64, False), "Epochs must be a number above 0"),
        (("demo", "x", 1, None, 64, False), "Dialogues a step must be"),
    ],
)
def test_what_cannot_be_a_run_is_refused_with_the_reason(values: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        arguments_of(*values)


def test_a_run_is_shown_with_its_curve_its_rest_and_samples_that_cannot_be_markup() -> None:
    shown = run_view(run())
    assert '<progress max="10" value="2">' in shown
    assert '<dt>Time left</dt><dd dir="auto">16 s</dd>' in shown, "two seconds a step"
    assert 'class="trained" points="36.0,5.0 72.0,115.0"' in shown
    assert "&lt;b&gt;Paris" in shown
    assert "&lt;i&gt;line" in shown
    assert "Resume goes on" in run_view(run("interrupted", steps=None, metrics=[], step=0))


def test_a_check_says_what_is_bad_and_a_record_what_is_learned() -> None:
    found = {
        "dialogues": 1234, "held_out": 5, "tokens": 100, "loss_tokens": 40, "steps": 7, "predicted_bytes": 2**30,
        "free_bytes": 2**31, "predicted_seconds": 600.0, "prompt_format": "guanaco", "bad": 1, "problems": ["<x>:1: odd"],
        "summary": ["1,234 dialogues"],
    }  # fmt: skip
    shown = check_view(found)
    assert "1,234 to train on, 5 held out" in shown
    assert "10 min while the machine is as busy as now" in shown
    assert "&lt;x&gt;:1: odd" in shown
    messages = [{"role": "user", "text": "<q>", "learned": False}, {"role": "assistant", "text": "a", "learned": True}]
    records = [{"where": "f:1", "format": "messages", "system": None, "messages": messages}]
    assert '<dd dir="auto">&lt;q&gt;</dd>' in record_view(records, 1)
    assert '<dd dir="auto" class="learned" title="Learned">a</dd>' in record_view(records, 99)


def test_the_finished_adapter_answers_beside_the_one_before() -> None:
    both = with_both(ModelSettings(model="demo", device="cpu"), run("finished"))
    assert both.adapters == (("mine", "/runs/mine/adapter"), (BEFORE, str(BUNDLED_ADAPTER.folder)))
    assert (both.base, both.device) == ("demo", "cpu")
    assert with_both(both, run("finished")).adapters == both.adapters, "trained again under the same name"
    assert with_both(ModelSettings(model="smollm2"), run("finished")).adapters == (("mine", "/runs/mine/adapter"),)


def test_an_uploaded_file_is_private_and_goes_with_the_server() -> None:
    files = UploadedFiles()
    path = files.add("../../my data.jsonl", b"{}")
    assert (path.name, path.read_bytes()) == ("my-data.jsonl", b"{}")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert files.find(str(path)) == path
    assert files.find("/etc/passwd") is None
    with pytest.raises(ValueError, match="Training reads"):
        files.add("run.sh", b"")
    later = [files.add(f"{index}.csv", b"") for index in range(9)]
    assert files.find(str(path)) is None, "the oldest goes"
    files.close()
    assert not later[-1].exists()
