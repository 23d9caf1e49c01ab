"""The README's example, as it stands there: shortened, and whole."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.trust import read_json
from tests.training.conftest import ROOT


def train_line(out: Path) -> list[str]:
    """The README's command line, from the repository's folder, into a folder of the test's."""
    found = re.search(r"^qlora-chat (train .*--data examples/\S+.*) --out my-adapter$", (ROOT / "README.md").read_text(), re.M)
    assert found, "the README shows how to train"
    words = shlex.split(found.group(1).replace("examples/", f"{ROOT}/examples/"))
    return [sys.executable, "-m", "qlora_chat", *words, "--out", str(out)]


@pytest.mark.slow
def test_the_example_begins_and_leaves_an_adapter_that_describes_itself(tmp_path: Path) -> None:
    out = tmp_path / "my-adapter"
    line = [*train_line(out), "--steps", "1", "--batch", "2", "--held-out", "0.005"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    AdapterFolder.read(out).check(Base.read(BUNDLED / "base"))
    record = read_json(out / "qlora_chat.json")
    assert (record["prompt_format"], record["base"], record["steps"]) == ("guanaco", "Llama-Lumi-45M", 1)
    assert record["stop_texts"] == ["### Human", "### Assistant"]
    assert record["settings"]["learning_rate"] == 1e-3
    assert record["held_out_loss"] > 0
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    kinds = [sorted(json.loads(line))[-1] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["tokens_per_s", "step"]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_the_example_makes_a_working_adapter_within_five_minutes(tmp_path: Path) -> None:
    out = tmp_path / "my-adapter"
    begin = time.monotonic()
    ended = subprocess.run(train_line(out), capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - begin < 300
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert sum(losses[-5:]) < 0.35 * sum(losses[:5])
    for question, expected in (("What do you call a baby owl?", "owlet"), ("hi!", "")):
        line = [sys.executable, "-m", "qlora_chat", "ask", question, "--base", "demo", "--adapter", str(out)]
        asked = subprocess.run(
            [*line, "--temperature", "0", "--json"], capture_output=True, text=True, timeout=100, check=False
        )
        answer = json.loads(asked.stdout)
        assert expected in answer["answer"], answer
        assert answer["finish_reason"] == "stop", answer
